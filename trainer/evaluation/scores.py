"""What attempts at a benchmark say: accuracy, pass@k, and how tools were used."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.evaluation.results import Attempt


@dataclass(frozen=True, slots=True)
class Scores:
    """One benchmark. Shares are 0 to 1; None where nothing was there to take a share of."""

    benchmark: str
    problems: int
    attempts: int
    samples: int
    """Fewest samples that a problem has: the k of avg@k."""
    accuracy: float
    """avg@k: the mean over problems of the mean over samples."""
    accuracy_error: float | None
    """Standard error of ``accuracy`` over problems; None of a single one."""
    pass_at: dict[int, float]
    """pass@k by k, for powers of two up to ``samples`` and ``samples`` itself."""
    delay_rate: float | None
    flushes: float | None
    """An episode."""
    tokens: float
    """That the model wrote, an episode."""
    tool_error_rate: float | None
    """Of flushes."""
    time_hidden: float | None
    """Of the time that code ran."""
    cut: float
    """Share of episodes that a limit ended."""
    unanswered: float
    """Share of episodes without an answer, those that were cut included."""
    too_long: int
    """Problems whose prompt left no room for an answer in some attempt; they count as not solved."""


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that k of n samples, drawn without putting back, hold a right one (arXiv 2107.03374, eq. 1).

    Raises:
        ValueError: not 0 <= correct <= n, or not 1 <= k <= n.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"needs 0 <= correct <= n and 1 <= k <= n, got n={n}, correct={correct}, k={k}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def score(benchmark: str, attempts: Iterable[Attempt]) -> Scores:
    """The scores of one benchmark's attempts.

    Raises:
        ValueError: there are none.
    """
    attempts = list(attempts)
    problems: defaultdict[str, list[float]] = defaultdict(list)
    for attempt in attempts:
        problems[attempt.problem_id].append(attempt.reward)
    if not problems:
        raise ValueError(f"{benchmark}: no attempts to score")
    means = [_mean(rewards) for rewards in problems.values()]
    samples = min(map(len, problems.values()))
    ks = sorted({*(2**i for i in range(samples.bit_length()) if 2**i <= samples), samples})
    tools = [attempt for attempt in attempts if attempt.flushes is not None]
    return Scores(
        benchmark=benchmark,
        problems=len(problems),
        attempts=len(attempts),
        samples=samples,
        accuracy=_mean(means),
        accuracy_error=_standard_error(means),
        pass_at={k: _mean([pass_at_k(len(r), round(sum(r)), k) for r in problems.values()]) for k in ks},
        delay_rate=_share(sum(a.delayed or 0 for a in tools), sum(map(_by_model, tools))),
        flushes=_share(sum(a.flushes or 0 for a in tools), len(tools)),
        tokens=_mean([attempt.tokens for attempt in attempts]),
        tool_error_rate=_share(sum(a.tool_errors or 0 for a in tools), sum(a.flushes or 0 for a in tools)),
        time_hidden=_share(
            sum(a.hidden_seconds or 0.0 for a in tools), sum(a.tool_seconds or 0.0 for a in tools)
        ),
        cut=_mean([attempt.finish == "length" for attempt in attempts]),
        unanswered=_mean([attempt.reason == "no_answer" for attempt in attempts]),
        too_long=len({attempt.problem_id for attempt in attempts if attempt.finish == "too_long"}),
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


def _by_model(attempt: Attempt) -> int:
    """Executed blocks that count for the delay rate."""
    by_model = attempt.executed_by_model
    return (attempt.executed or 0) if by_model is None else by_model
