"""Count delayed calls, and refuse the count to flushes that game it (algorithm.md, section 1)."""

from __future__ import annotations

from collections.abc import Sequence


def delayed_calls(codes: Sequence[str], gaps: Sequence[str]) -> int:
    """Delayed calls of one flush: all of its blocks but the last, or 0 if the flush games the count.

    Args:
        codes: the flushed blocks in order.
        gaps: the text between each block and the next; one item less than ``codes``.

    A flush games the count when two blocks have nothing between them, when a block is empty, or when a block
    repeats the earlier ones: all its lines stand in them, or it holds all of theirs. Comments and prints are
    left out of that comparison, and a block of nothing else repeats nothing.
    """
    if any(not gap.strip() for gap in gaps) or any(not code.strip() for code in codes):
        return 0
    earlier: set[str] = set()
    for code in codes:
        lines = _telling_lines(code)
        if lines and earlier and (lines <= earlier or lines >= earlier):
            return 0
        earlier |= lines
    return max(len(codes) - 1, 0)


def _telling_lines(code: str) -> set[str]:
    stripped = (line.strip() for line in code.splitlines())
    return {line for line in stripped if line and not line.startswith(("#", "print(", "print ("))}
