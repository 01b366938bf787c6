"""The commands that the documentation shows, and what its authors say of each.

A fenced ``sh`` or ``python`` block has a comment right before it, which readers don't see:

    <!-- test: run -->                     it runs as it stands
    <!-- test: run needs=server -->        so it does, and its addresses become those of a server of the tests
    <!-- test: run needs=rollout -->       in a folder with a saved rollout
    <!-- test: not run: the reason -->     only its words are checked: commands, options, files
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPO: Final = Path(__file__).resolve().parents[2]
_MARK: Final = re.compile(r"<!-- test: (?:run(?: needs=(?P<needs>[\w,]+))?|not run: (?P<reason>.{8,}?)) -->")
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
    """A fenced block. Neither ``runs`` nor a ``reason``: its author has said nothing."""

    place: str
    language: str
    code: str
    runs: bool
    needs: frozenset[str]
    reason: str | None


def all_blocks() -> list[Block]:
    """Those of the README, of the site and of the model card."""
    pages = [
        REPO / "README.md",
        *sorted((REPO / "docs").rglob("*.md")),
        REPO / "checkpoints/quickstart/README.md",
    ]
    return [
        block
        for page in pages
        for block in blocks(page.read_text(encoding="utf-8"), str(page.relative_to(REPO)))
    ]


def blocks(text: str, page: str) -> Iterator[Block]:
    """The blocks of one page's Markdown."""
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
            reason = mark["reason"] if mark else None
            yield Block(
                place=f"{page}:{number + 1}",
                language=language,
                code="\n".join(lines[number + 1 : end]) + "\n",
                runs=mark is not None and reason is None,
                needs=frozenset((mark["needs"] or "").split(",")) - {""} if mark else frozenset(),
                reason=reason,
            )
        number = end + 1
