"""Fenced code blocks of the documentation, with the comments that control their tests.

A fenced ``sh`` or ``python`` block has a comment right before it, which is not displayed:

    <!-- test: run -->                     run unchanged
    <!-- test: run needs=server -->        run with its addresses replaced by those of a test server
    <!-- test: run needs=rollout -->       run in a folder with a saved rollout
    <!-- test: run by FILE as NAME -->     run by that test file, which calls `documented(FILE, NAME)`
    <!-- test: not run: the reason -->     not run; commands, options and files are checked
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPO: Final = Path(__file__).resolve().parents[2]
_MARK: Final = re.compile(
    r"<!-- test: (?:run(?: needs=(?P<needs>[\w,]+))?|run by (?P<by>tests/[\w/]+\.py as [\w-]+)"
    r"|not run: (?P<reason>.{8,}?)) -->"
)
_LANGUAGES: Final = {
    "sh": "sh",
    "bash": "sh",
    "shell": "sh",
    "console": "sh",
    "python": "python",
    "py": "python",
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. Without ``runs``, ``by`` and ``reason`` it has no comment."""

    place: str
    language: str
    code: str
    runs: bool
    needs: frozenset[str]
    reason: str | None
    by: str | None = None


def documented(file: str, name: str) -> Block:
    """Return the block that is marked as run by test file ``file`` as ``name``."""
    by = f"{Path(file).resolve().relative_to(REPO)} as {name}"
    (block,) = [block for block in all_blocks() if block.by == by]
    return block


def all_blocks() -> list[Block]:
    """Return the blocks of README, contributor guide, site, model card and ``secrets/README.md``."""
    pages = [
        REPO / "README.md",
        REPO / "CONTRIBUTING.md",
        *sorted((REPO / "docs").rglob("*.md")),
        REPO / "checkpoints/quickstart/README.md",
        REPO / "secrets/README.md",
    ]
    return [
        block
        for page in pages
        for block in blocks(page.read_text(encoding="utf-8"), str(page.relative_to(REPO)))
    ]


def blocks(text: str, page: str) -> Iterator[Block]:
    """Yield the blocks of one page in Markdown."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r"\s*(`{3,})\s*(\S*)", lines[number])
        if fence is None:
            number += 1
            continue
        end = next((at for at in range(number + 1, len(lines)) if lines[at].strip() == fence[1]), len(lines))
        if language := _LANGUAGES.get(fence[2]):
            before = next((line for line in reversed(lines[:number]) if line.strip()), "")
            mark = _MARK.fullmatch(before.strip())
            reason, by = (mark["reason"], mark["by"]) if mark else (None, None)
            yield Block(
                place=f"{page}:{number + 1}",
                language=language,
                code="\n".join(lines[number + 1 : end]) + "\n",
                runs=mark is not None and reason is None and by is None,
                needs=frozenset((mark["needs"] or "").split(",")) - {""} if mark else frozenset(),
                reason=reason,
                by=by,
            )
        number = end + 1
