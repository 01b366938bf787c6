r"""Find the final answer, ``\boxed{...}``: one rule for what ends an episode and for what is graded."""

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

    ``\boxed 5`` counts as ``\boxed{5}``. Spaces at both ends of the content, TeX's included, are removed. Of
    nested boxes the outermost counts. A box that is never closed, or holds nothing, is not an answer.
    Linear in the length of the text.
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
        # A backslash keeps the space after it: "5\\ " ends in a space of TeX's.
        bare = content.rstrip()
        content = bare + content[len(bare) :][:1] if bare.endswith("\\") else bare
        for space in _SPACES:
            content = content.removeprefix(space).removesuffix(space)
        if content == before:
            return content
