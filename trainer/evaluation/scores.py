"""Scores of a benchmark: accuracy, pass@k and tool usage."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.evaluation.results import EvalResult


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
    """pass@k by k, for powers of two up to ``samples`` and ``samples`` itself."""
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


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the probability that k of n samples contain a correct one (arXiv 2107.03374, eq. 1).

    Raises:
        ValueError: unless 0 <= correct <= n and 1 <= k <= n.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"requires 0 <= correct <= n and 1 <= k <= n, got n={n}, correct={correct}, k={k}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def score(benchmark: str, results: Iterable[EvalResult]) -> Scores:
    """Return the scores of one benchmark.

    Raises:
        ValueError: there are no results.
    """
    results = list(results)
    problems: defaultdict[str, list[float]] = defaultdict(list)
    for result in results:
        problems[result.problem_id].append(result.reward)
    if not problems:
        raise ValueError(f"{benchmark}: no results to score")
    means = [_mean(rewards) for rewards in problems.values()]
    samples = min(map(len, problems.values()))
    ks = sorted({*(2**i for i in range(samples.bit_length()) if 2**i <= samples), samples})
    tools = [result for result in results if result.flushes is not None]
    return Scores(
        benchmark=benchmark,
        problems=len(problems),
        attempts=len(results),
        samples=samples,
        accuracy=_mean(means),
        accuracy_error=_standard_error(means),
        pass_at={k: _mean([pass_at_k(len(r), round(sum(r)), k) for r in problems.values()]) for k in ks},
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
