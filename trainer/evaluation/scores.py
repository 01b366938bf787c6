"""Scores of a benchmark: accuracy, pass@k, maj@k and tool usage."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.evaluation.results import EvalResult
from trainer.evaluation.statistics import MAX_EXACT, Interval, maj_at_k, mean_interval, pass_at_k


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one benchmark. Shares are between 0 and 1, or None if their denominator is 0."""

    benchmark: str
    problems: int
    attempts: int
    """Number of results."""
    samples: int
    """Minimum number of samples per problem: the k of avg@k."""
    accuracy: float
    """avg@k: the mean over problems of the mean over samples."""
    accuracy_error: float | None
    """Standard error of ``accuracy`` over problems; None for a single problem."""
    pass_at: dict[int, float]
    """pass@k by k, for powers of two up to ``samples``, ``samples`` itself and the requested k."""
    maj_at: dict[int, float]
    """maj@k by k: the share of problems that a majority vote over k samples solves. Empty for problems with
    more than 1,000 samples."""
    accuracy_interval: Interval | None
    """95 % bootstrap interval of ``accuracy`` over problems; None for a single problem."""
    by_problem: dict[str, float]
    """Mean reward of each problem."""
    delay_rate: float | None
    """Share of delayed calls in the executed calls that the model requested."""
    flushes: float | None
    """Mean number of flushes per episode."""
    tokens: float
    """Mean number of generated tokens per episode."""
    tool_error_rate: float | None
    """Share of flushes with a status other than ok."""
    time_hidden: float | None
    """Share of the tool time that overlapped with generation."""
    cut: float
    """Share of episodes cut by a limit."""
    unanswered: float
    """Share of episodes without an answer, including those that were cut."""
    too_long: int
    """Problems whose prompt left no room for an answer in at least one sample. They count as not solved."""


def score(benchmark: str, results: Iterable[EvalResult], pass_at: Iterable[int] = ()) -> Scores:
    """Return the scores of one benchmark.

    Args:
        benchmark: its name.
        results: its results.
        pass_at: further k of pass@k and maj@k; those above the number of samples are left out.

    Raises:
        ValueError: there are no results.
    """
    results = list(results)
    problems: defaultdict[str, list[EvalResult]] = defaultdict(list)
    for result in results:
        problems[result.problem_id].append(result)
    if not problems:
        raise ValueError(f"{benchmark}: no results to score")
    means = {name: _mean([result.reward for result in group]) for name, group in problems.items()}
    samples = min(map(len, problems.values()))
    powers = (2**i for i in range(samples.bit_length()) if 2**i <= samples)
    ks = sorted({*powers, *(k for k in pass_at if k <= samples), samples})
    tools = [result for result in results if result.flushes is not None]
    return Scores(
        benchmark=benchmark,
        problems=len(problems),
        attempts=len(results),
        samples=samples,
        accuracy=_mean(list(means.values())),
        accuracy_error=_standard_error(list(means.values())),
        accuracy_interval=mean_interval(list(means.values())),
        by_problem=means,
        pass_at=_pass_at(list(problems.values()), ks),
        maj_at=_maj_at(list(problems.values()), ks),
        delay_rate=_share(sum(a.delayed or 0 for a in tools), sum(map(_by_model, tools))),
        flushes=_share(sum(a.flushes or 0 for a in tools), len(tools)),
        tokens=_mean([result.tokens for result in results]),
        tool_error_rate=_share(sum(a.tool_errors or 0 for a in tools), sum(a.flushes or 0 for a in tools)),
        time_hidden=_share(
            sum(a.hidden_seconds or 0.0 for a in tools), sum(a.tool_seconds or 0.0 for a in tools)
        ),
        cut=_mean([result.finish == "length" for result in results]),
        unanswered=_mean([result.reason == "no_answer" for result in results]),
        too_long=len({result.problem_id for result in results if result.finish == "too_long"}),
    )


def _pass_at(problems: Sequence[Sequence[EvalResult]], ks: Sequence[int]) -> dict[int, float]:
    solved = [(len(group), sum(result.is_solved for result in group)) for group in problems]
    return {k: _mean([pass_at_k(n, correct, k) for n, correct in solved]) for k in ks}


def _maj_at(problems: Sequence[Sequence[EvalResult]], ks: Sequence[int]) -> dict[int, float]:
    found = [
        maj_at_k([result.vote for result in group], [result.is_solved for result in group], ks)
        for group in problems
        if len(group) <= MAX_EXACT
    ]
    return {k: _mean([shares[k] for shares in found]) for k in ks} if len(found) == len(problems) else {}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _by_model(result: EvalResult) -> int:
    """Return the number of executed blocks that count for the delay rate."""
    by_model = result.executed_by_model
    return (result.executed or 0) if by_model is None else by_model
