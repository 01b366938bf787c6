r"""Find the final answer, ``\boxed{...}``."""

from __future__ import annotations

from typing import Final

BOX: Final = "\\boxed{"


def last_boxed(text: str) -> str | None:
    r"""Content of the last closed, non-empty ``\boxed{...}`` of ``text``, inner braces included, or None."""
    end = len(text)
    while (start := text.rfind(BOX, 0, end)) >= 0:
        content = _balanced(text, start + len(BOX))
        if content is not None and content.strip():
            return content.strip()
        end = start
    return None


def _balanced(text: str, start: int) -> str | None:
    depth = 1
    position = start
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 2  # an escaped brace is not a brace
            continue
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[start:position]
        position += 1
    return None
