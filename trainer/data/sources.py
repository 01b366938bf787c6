"""Where problems come from: files, the hub, or the quickstart's own endless synthetic ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from trainer.data.problems import Problem, ProblemSet, load_problems
from trainer.quickstart.problems import FAMILIES

_QUICKSTART: Final = re.compile(r"quickstart(-held-out)?:(\d+)")


def load_source(
    source: str | Path,
    *,
    count_tokens: Callable[[str], int] | None = None,
    max_prompt_tokens: int | None = None,
) -> ProblemSet:
    """The problems of a source, as `load_problems`; also ``quickstart:2000``, so many problems
    like those that the quickstart checkpoint was made with, and ``quickstart-held-out:200``, of the kind that
    it was never shown. They are the same each time.

    Raises:
        DataError: the source can't be read, holds nothing, or a row does not fit.
    """
    match = _QUICKSTART.fullmatch(str(source))
    if match is None:
        return load_problems(source, count_tokens=count_tokens, max_prompt_tokens=max_prompt_tokens)
    return ProblemSet(_synthetic(int(match[2]), held_out=match[1] is not None))


def _synthetic(count: int, *, held_out: bool) -> tuple[Problem, ...]:
    rng = Random(f"quickstart/{held_out}")  # noqa: S311 - not for secrets
    families = list(FAMILIES.values())
    name = "quickstart-held-out" if held_out else "quickstart"
    problems: list[Problem] = []
    while len(problems) < count:
        made = rng.choice(families)(rng)
        if made.held_out == held_out:
            problems.append(Problem(f"{name}:{len(problems)}", made.text, str(made.answer)))
    return tuple(problems)
