"""Statistics of an evaluation: pass@k, maj@k, bootstrap intervals and paired differences.

Everything is exact or has a fixed seed, so the same results give the same figures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 10_000
"""Bootstrap resamples, and random sign flips of a paired test."""
LEVEL: Final = 0.95
"""Coverage of the intervals."""
_CHUNK: Final = 1000
MAX_EXACT: Final = 1000
"""Samples of a problem up to which maj@k is computed for every k; binomial coefficients overflow above."""

Interval = tuple[float, float]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the probability that k of n samples, drawn without replacement, include a correct one.

    The unbiased estimator of pass@k by Chen et al. (2021), arXiv 2107.03374, equation 1.

    Raises:
        ValueError: not 0 <= correct <= n, or not 1 <= k <= n.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"needs 0 <= correct <= n and 1 <= k <= n, got n={n}, correct={correct}, k={k}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def maj_at_k(votes: Sequence[str | None], correct: Sequence[bool], ks: Iterable[int]) -> dict[int, float]:
    """Return, for each k, the probability that the majority of k samples is correct.

    The exact mean over all sets of k of the n samples, drawn without replacement. The most frequent answer of
    a set wins; among equally frequent ones each wins with the same probability. Majority voting over samples
    is self-consistency by Wang et al. (2023), arXiv 2203.11171.

    Args:
        votes: one answer per sample, equal texts for equal answers; None for a sample without an answer,
            which does not vote.
        correct: one verdict per sample. All correct samples count as one answer, however they are written.
        ks: sizes of the sets. For more than 1,000 samples only ``len(votes)`` is possible.

    Raises:
        ValueError: a k is not between 1 and n, or ``votes`` and ``correct`` differ in length.
    """
    n = len(votes)
    ks = sorted(set(ks))
    if len(correct) != n:
        raise ValueError(f"needs one verdict per vote, got {n} votes and {len(correct)} verdicts")
    if ks and not (ks[0] >= 1 and ks[-1] <= n):
        raise ValueError(f"needs 1 <= k <= n, got n={n} and k={ks}")
    right = sum(correct)
    wrong = Counter(vote for vote, is_correct in zip(votes, correct, strict=True) if not is_correct)
    silent = wrong.pop(None, 0)
    if n > MAX_EXACT:
        if ks != [n]:
            raise ValueError(f"more than {MAX_EXACT} samples: only k={n} is possible")
        top = max(wrong.values(), default=0)
        ties = sum(count == top for count in wrong.values())
        return {n: 0.0 if not right or right < top else 1.0 if right > top else 1 / (1 + ties)}
    wins = np.zeros(n + 1)
    for votes_for in range(1, right + 1):
        # shares[d]: sets of d other samples without a wrong answer that has more than `votes_for` votes.
        shares = _not_beaten(list(wrong.values()), silent, votes_for)
        last = min(len(shares), n + 1 - votes_for)
        wins[votes_for : votes_for + last] += math.comb(right, votes_for) * shares[:last]
    return {k: float(wins[k] / math.comb(n, k)) for k in ks}


def _not_beaten(wrong: Sequence[int], silent: int, limit: int) -> NDArray[np.float64]:
    """Count sets of samples by size in which each wrong answer has at most ``limit`` votes.

    Args:
        wrong: samples per wrong answer.
        silent: samples without an answer.
        limit: votes of the correct answer.

    Returns:
        [size + 1] counts, each set weighted by 1 / (1 + answers that have exactly ``limit`` votes).
    """
    by_ties = [_combinations(silent, silent)]  # index: number of ties; value: counts by size
    for size in wrong:
        below = _combinations(size, min(size, limit - 1))
        grown = [np.convolve(counts, below) for counts in by_ties]
        if size >= limit:
            grown.append(np.zeros(1))
            for ties, counts in enumerate(by_ties):
                tied = np.concatenate([np.zeros(limit), counts * math.comb(size, limit)])
                grown[ties + 1] = _add(grown[ties + 1], tied)
        by_ties = grown
    total = np.zeros(1)
    for ties, counts in enumerate(by_ties):
        total = _add(total, counts / (1 + ties))
    return total


def _combinations(size: int, most: int) -> NDArray[np.float64]:
    return np.array([float(math.comb(size, drawn)) for drawn in range(most + 1)])


def _add(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    result = np.zeros(max(len(a), len(b)))
    result[: len(a)] += a
    result[: len(b)] += b
    return result


def bootstrap_means(values: Any, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Return the means of resamples of ``values`` along the first axis, drawn with replacement.

    Args:
        values: [n] or [n, m], n problems and m figures of each.
        resamples: number of resamples.
        seed: the same seed gives the same resamples.

    Returns:
        [resamples] or [resamples, m].
    """
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _CHUNK):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, resamples - start))
        means.append(counts @ array / n)
    return np.concatenate(means)


def percentile_interval(means: NDArray[np.float64], level: float = LEVEL) -> Interval:
    """Return the percentile interval of bootstrap means, [resamples]."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Sequence[float], *, level: float = LEVEL, seed: int = 0) -> Interval | None:
    """Return the bootstrap interval of the mean of ``values``, one per problem; None for fewer than 2."""
    if len(values) < 2:
        return None
    return percentile_interval(bootstrap_means(values, seed=seed), level)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The mean of b - a over pairs."""

    mean: float
    error: float | None
    """Standard error over pairs; None for a single pair."""
    interval: Interval | None
    """Bootstrap interval; None for a single pair."""
    p_value: float
    """Two-sided sign-flip test: share of random sign patterns with a mean difference at least as large."""

    @property
    def p_text(self) -> str:
        """The p-value with three digits, or ``<0.001``."""
        return "<0.001" if self.p_value < 0.0005 else f"{self.p_value:.3f}"


def paired_difference(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> PairedDifference:
    """Compare two systems on the same problems, one value per problem each.

    Pairing removes the variance of the problems' difficulty (Miller 2024, arXiv 2411.00640).

    Raises:
        ValueError: no pairs, or different lengths.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"needs pairs, got {len(a)} and {len(b)} values")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    n = len(differences)
    mean = float(differences.mean())
    error = float(differences.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return PairedDifference(
        mean, error, mean_interval(differences.tolist(), seed=seed), _sign_flip_p(differences, seed)
    )


def _sign_flip_p(differences: NDArray[np.float64], seed: int) -> float:
    """Exact up to 13 pairs, which have fewer sign patterns than ``RESAMPLES``."""
    n = len(differences)
    observed = abs(differences.sum()) - 1e-9
    if 2**n <= RESAMPLES:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((abs((1 - 2 * bits) @ differences) >= observed).mean())
    generator = np.random.default_rng(seed)
    extreme = 0
    for _ in range(RESAMPLES // _CHUNK):
        signs = 1 - 2 * generator.integers(0, 2, size=(_CHUNK, n))
        extreme += int((abs(signs @ differences) >= observed).sum())
    return (extreme + 1) / (RESAMPLES + 1)
