"""Sources of problems: files, the hub, or generated quickstart problems."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Final

from trainer.data.problems import DataError, Problem, ProblemSet, load_problems
from trainer.data.suites import EVAL_SPLITS, SUITES, parse_benchmark, suite
from trainer.environments.multi_hop import questions
from trainer.quickstart.problems import FAMILIES

_QUICKSTART: Final = re.compile(r"quickstart(-held-out)?:(\d+)")
_MULTI_HOP: Final = re.compile(r"multi-hop(-held-out)?:(\d+)")
_REASONING_GYM: Final = re.compile(r"reasoning-gym(-held-out)?:([a-z0-9_,]+):(\d+)")


def load_source(
    source: str | Path,
    *,
    splits: Sequence[str] = ("train",),
    check_gold: bool = True,
    count_tokens: Callable[[Problem], int] | None = None,
    max_prompt_tokens: int | None = None,
) -> ProblemSet:
    """Load the problems of a source.

    Besides the sources of `load_problems`: ``quickstart:2000`` generates 2,000 problems of the kind that the
    quickstart checkpoint was trained on, and ``quickstart-held-out:200`` generates 200 that it was not
    trained on. ``reasoning-gym:gcd,simple_equations:500`` generates 500 problems of these data sets of the
    package reasoning-gym, and ``reasoning-gym-held-out:...`` generates others of the same kinds.
    ``multi-hop:2000`` and ``multi-hop-held-out:200`` generate questions for `trainer.environments.multi_hop`.
    Generated problems are the same each time.

    Raises:
        DataError: the source is unreadable or empty, or a row is invalid.
    """
    problems = _generated(str(source))
    if problems is None:
        return load_problems(
            source,
            splits=splits,
            check_gold=check_gold,
            count_tokens=count_tokens,
            max_prompt_tokens=max_prompt_tokens,
        )
    if count_tokens is None or max_prompt_tokens is None:
        return ProblemSet(problems)
    kept = tuple(problem for problem in problems if count_tokens(problem) <= max_prompt_tokens)
    if problems and not kept:
        raise DataError(f"{source}: no usable problems: all {len(problems)} are too long")
    return ProblemSet(kept, too_long=len(problems) - len(kept))


def _generated(source: str) -> tuple[Problem, ...] | None:
    """Return the problems of a source that generates them; None for other sources."""
    if match := _REASONING_GYM.fullmatch(source):
        return _reasoning_gym(match[2].split(","), int(match[3]), held_out=match[1] is not None)
    if match := _MULTI_HOP.fullmatch(source):
        drawn = questions(int(match[2]), held_out=match[1] is not None)
        name = source.partition(":")[0]
        return tuple(Problem(f"{name}:{number}", q.text, q.answer) for number, q in enumerate(drawn))
    if match := _QUICKSTART.fullmatch(source):
        return _generate(int(match[2]), held_out=match[1] is not None)
    return None


def load_benchmarks(sources: Iterable[str]) -> dict[str, tuple[Problem, ...]]:
    """Load evaluation problems by benchmark, including those whose gold answers are invalid.

    Args:
        sources: names of suites, or sources as for `load_source`, optionally as ``name=source``.

    Raises:
        DataError: a source is unreadable or empty, or a row is invalid.
    """
    found = [
        benchmark
        for source in sources
        for benchmark in (suite(source) if source in SUITES else (parse_benchmark(source),))
    ]
    return {
        benchmark.name: load_source(benchmark.source, splits=EVAL_SPLITS, check_gold=False).problems
        for benchmark in found
    }


def _generate(count: int, *, held_out: bool) -> tuple[Problem, ...]:
    rng = Random(f"quickstart/{held_out}")  # noqa: S311 - not for secrets
    families = list(FAMILIES.values())
    name = "quickstart-held-out" if held_out else "quickstart"
    problems: list[Problem] = []
    while len(problems) < count:
        generated = rng.choice(families)(rng)
        if generated.held_out == held_out:
            problems.append(Problem(f"{name}:{len(problems)}", generated.text, str(generated.answer)))
    return tuple(problems)


def _reasoning_gym(names: Sequence[str], count: int, *, held_out: bool) -> tuple[Problem, ...]:
    """Return ``count`` problems, in turn from each data set."""
    try:
        import reasoning_gym
    except ModuleNotFoundError:
        raise DataError("reasoning-gym is not installed: pip install 'ih-grpo[generators]'") from None
    size = -(-count // len(names))
    seed = _HELD_OUT_SEED if held_out else 0
    try:
        sets = [reasoning_gym.create_dataset(name, seed=seed, size=size) for name in names]
    except (ValueError, AssertionError) as error:
        raise DataError(f"reasoning-gym: {error}. hint: use names of its data sets, such as gcd") from None
    source = "reasoning-gym-held-out" if held_out else "reasoning-gym"
    items = [generated[index] for index in range(size) for generated in sets][:count]
    return tuple(
        Problem(f"{source}:{number}", str(item["question"]), str(item["answer"]))
        for number, item in enumerate(items)
    )


_HELD_OUT_SEED: Final = 2**31 - 1
"""reasoning-gym draws item ``i`` with the seed plus ``i``, so the two seeds are far apart."""
