r"""Extraction of the final answer, ``\boxed{...}``, which ends an episode and is graded."""

from __future__ import annotations

import re
from typing import Final

_BRACE: Final = re.compile(
    r"""
    \\(?:boxed|fbox)\s*\{                                        # a box
    | \\boxed\s*(?P<bare>-?\d+(?:[.,]\d+)*                       # a box without braces around a number
        | (?<=\s)[A-Za-z](?=\s*(?:[$.,;:!)\]]|\\[)\]]|\n|$)))    # or around a letter
    | \\. | [{}]
    """,
    re.DOTALL | re.VERBOSE,
)
_SPACES: Final = ("~", "\\ ", "\\,", "\\;", "\\:", "\\!", "\\quad", "\\qquad")


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete ``\boxed{...}`` or ``\fbox{...}`` of ``text``, or None.

    ``\boxed 5`` counts as ``\boxed{5}``. Spaces at both ends of the content, including TeX spaces, are
    removed. Of nested boxes the outermost counts. An unclosed or empty box is not an answer. Time is linear
    in the length of the text.
    """
    open_groups: list[tuple[bool, int]] = []
    answer: str | None = None
    for match in _BRACE.finditer(text):
        brace = match.group()
        if match["bare"]:
            answer = match["bare"]
        elif brace[-1] == "{" and brace != r"\{":
            open_groups.append((brace != "{", match.end()))
        elif brace == "}" and open_groups:
            is_box, start = open_groups.pop()
            if is_box:
                answer = _strip(text[start : match.start()]) or answer
    return answer


def _strip(content: str) -> str:
    while True:
        before = content
        content = content.lstrip()
        # Keep the space after a backslash: "5\\ " ends with a TeX space.
        bare = content.rstrip()
        content = bare + content[len(bare) :][:1] if bare.endswith("\\") else bare
        for space in _SPACES:
            content = content.removeprefix(space).removesuffix(space)
        if content == before:
            return content
