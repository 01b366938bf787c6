"""Gold answers that no response can be compared with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from trainer.rewards.structure import is_balanced

MAX_BAD_SHARE: Final = 0.01
"""Share of bad gold answers above which a data set is rejected."""
_MAX_WORDS: Final = 25
_SHOWN: Final = 5


def cut_gold(gold: str) -> str:
    """The answer of a GSM8K rationale, after its last ``####``; other gold answers unchanged."""
    return gold.rpartition("####")[2].strip()


def gold_problem(gold: str) -> str | None:
    """The reason why ``gold`` is not an answer, or None. A look at the text alone: it may still not parse."""
    if not re.search(r"[^\W_]|\\[A-Za-z]|[∞∅°½]", gold):
        return "empty"
    if not is_balanced(gold.replace("~", " ")):
        return "unbalanced brackets"
    if len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", " ", gold))) > _MAX_WORDS:
        return "a text, not an answer"
    return None


def describe(bad: Sequence[tuple[int, str]], total: int) -> str:
    """Return one sentence that names the first rows of ``bad``: row numbers and problems."""
    rows = ", ".join(f"row {row} ({problem})" for row, problem in bad[:_SHOWN])
    more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return f"{len(bad)} of {total} gold answers can't be graded: {rows}{more}"
