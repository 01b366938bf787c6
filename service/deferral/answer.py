r"""Find the final answer, ``\boxed{...}``: one rule for what ends an episode and for what is graded."""

from __future__ import annotations

import re
from typing import Final

BOX: Final = "\\boxed{"
_BRACE: Final = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last complete ``\boxed{...}`` of ``text``, or None. Linear in the text's length.

    Of nested boxes the outermost counts. A box that is never closed, or holds nothing, is no answer.
    """
    open_groups: list[tuple[bool, int]] = []
    answer: str | None = None
    for match in _BRACE.finditer(text):
        brace = match.group()
        if brace[-1] == "{" and brace != r"\{":
            open_groups.append((brace != "{", match.end()))
        elif brace == "}" and open_groups:
            is_box, start = open_groups.pop()
            if is_box:
                answer = text[start : match.start()].strip() or answer
    return answer
