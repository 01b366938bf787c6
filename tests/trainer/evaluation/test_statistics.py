from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation.statistics import (
    bootstrap_means,
    maj_at_k,
    mean_interval,
    paired_difference,
    pass_at_k,
    percentile_interval,
)


@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k_is_the_mean_over_all_sets(n: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    sets = list(itertools.combinations([i < correct for i in range(n)], k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, sets)) / len(sets))


@pytest.mark.parametrize(("n", "correct", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_rejects_impossible_counts(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="needs 0 <= correct <= n"):
        pass_at_k(n, correct, k)


def brute_maj(votes: list[str | None], correct: list[bool], k: int) -> float:
    answers = ["right" if c else v for v, c in zip(votes, correct, strict=True)]
    total = 0.0
    sets = list(itertools.combinations(answers, k))
    for drawn in sets:
        counts = Counter(answer for answer in drawn if answer is not None)
        if counts and counts["right"] == max(counts.values()):
            total += 1 / sum(count == counts["right"] for count in counts.values())
    return total / len(sets)


SAMPLES = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans()), min_size=1, max_size=9)


@given(SAMPLES)
def test_maj_at_k_is_the_mean_over_all_sets(samples: list[tuple[str | None, bool]]) -> None:
    votes, correct = [v for v, _ in samples], [c for _, c in samples]
    ks = range(1, len(samples) + 1)
    exact = maj_at_k(votes, correct, ks)
    assert exact == pytest.approx({k: brute_maj(votes, correct, k) for k in ks})


def test_maj_at_k_of_known_cases() -> None:
    assert maj_at_k(["4", "4", "5"], [True, True, False], [3]) == {3: 1.0}
    assert maj_at_k(["4", "5", "5"], [True, False, False], [1, 3]) == {1: pytest.approx(1 / 3), 3: 0.0}
    assert maj_at_k(["0.5", "1/2", "3", "3"], [True, True, False, False], [4]) == {4: 0.5}
    assert maj_at_k([None, None, "4"], [False, False, True], [3]) == {3: 1.0}
    assert maj_at_k([None], [False], [1]) == {1: 0.0}


@pytest.mark.parametrize("n", [256, 1000])
def test_maj_at_k_of_many_samples(n: int) -> None:
    votes = [str(i % 7) for i in range(n)]
    correct = [vote == "3" for vote in votes]
    result = maj_at_k(votes, correct, [1, n])
    assert result[1] == pytest.approx(sum(correct) / n)
    assert 0 <= result[n] <= 1


def test_maj_at_n_beyond_the_exact_range() -> None:
    votes = ["right"] * 500 + ["wrong"] * 500 + ["other"]
    correct = [vote == "right" for vote in votes]
    assert maj_at_k(votes, correct, [1001]) == {1001: 0.5}
    with pytest.raises(ValueError, match="only k=1001"):
        maj_at_k(votes, correct, [2])


@pytest.mark.parametrize(("votes", "correct", "ks", "message"), [
    (["a"], [], [1], "one verdict per vote"), (["a"], [True], [0], "1 <= k"), (["a"], [True], [2], "1 <= k"),
])  # fmt: skip
def test_maj_at_k_rejects(votes: list[str | None], correct: list[bool], ks: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maj_at_k(votes, correct, ks)


def test_bootstrap_has_the_right_spread_and_a_fixed_seed() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    means = bootstrap_means(values)
    assert means.shape == (10_000,)
    assert means.mean() == pytest.approx(values.mean(), abs=0.02)
    assert means.std() == pytest.approx(values.std() / math.sqrt(400), rel=0.05)
    assert (means == bootstrap_means(values)).all()
    assert (means != bootstrap_means(values, seed=1)).any()
    low, high = percentile_interval(means)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert bootstrap_means(np.ones((3, 2)), resamples=7).tolist() == [[1.0, 1.0]] * 7


def test_intervals_cover() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(40):
        low, high = mean_interval((generator.random(60) < 0.4).astype(float).tolist()) or (0.0, 0.0)
        hits += low <= 0.4 <= high
    assert hits >= 34
    assert mean_interval([0.5]) is None


def test_paired_difference_of_equal_and_of_better_runs() -> None:
    a = [0.0, 0.5, 1.0, 0.25] * 10
    same = paired_difference(a, a)
    assert (same.mean, same.error, same.interval, same.p_value) == (0.0, 0.0, (0.0, 0.0), 1.0)
    better = paired_difference(a, [min(1.0, x + 0.25) for x in a])
    assert better.mean == pytest.approx(0.1875)
    assert better.interval is not None
    assert 0 < better.interval[0] < better.mean < better.interval[1]
    assert better.p_value < 0.001
    assert (better.p_text, same.p_text) == ("<0.001", "1.000")


def test_sign_flips_are_exact_for_few_pairs() -> None:
    assert paired_difference([0, 0, 0], [1, 1, 1]).p_value == 2 / 8
    assert paired_difference([0], [1]).p_value == 1.0
    assert paired_difference([0], [1]).error is None
    one_sided = paired_difference([0.0] * 14, [1.0] * 14)  # 2 of 16,384 patterns: the random form
    assert one_sided.p_value < 0.002


def test_p_values_are_uniform_without_a_difference() -> None:
    generator = np.random.default_rng(3)
    values = [
        paired_difference(generator.random(25).tolist(), generator.random(25).tolist()).p_value
        for _ in range(40)
    ]
    assert 0.3 < np.mean(values) < 0.7
    assert np.mean(np.array(values) < 0.05) < 0.2


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], []), ([1.0], [1.0, 2.0])])
def test_paired_difference_needs_pairs(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="needs pairs"):
        paired_difference(a, b)
