from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.decontamination import NgramIndex, Overlap, find_overlaps, words

LONG = "a train leaves the station at noon and travels north at sixty miles per hour for three hours"


@dataclass(frozen=True)
class Question:
    id: str
    question: str


def overlap(train: str, evaluation: str, ngram: int = 13) -> Overlap | None:
    return NgramIndex({"test": [Question("e", evaluation)]}, ngram).find(Question("t", train))


def test_the_same_problem_in_other_typography() -> None:
    found = overlap(
        "A train  leaves the station -- at NOON, and " + LONG.split("noon and ")[1].upper() + "!", LONG
    )
    assert found == Overlap("t", "test", "e", 1.0, " ".join(LONG.split()[:13]))
    assert words(r"$x_1 = \frac{1}{2}$ ＡＢ") == ["x", "1", "frac", "1", "2", "ab"]


def test_thirteen_words_in_a_row_are_needed() -> None:
    shared = LONG.split()
    assert overlap(" ".join(["other", *shared[:13], "words"]), LONG) is not None
    assert overlap(" ".join(["other", *shared[:12], "words", *shared[12:]]), LONG) is None
    assert overlap(" ".join(["other", *shared[:12], "words"]), LONG, ngram=12) is not None


def test_the_share_of_the_evaluation_problem() -> None:
    found = overlap(" ".join(LONG.split()[:13]), LONG)
    assert found is not None
    assert found.share == pytest.approx(13 / len(LONG.split()))


def test_short_evaluation_problems_match_as_a_whole() -> None:
    assert overlap("First: find the sum of 3 and 4, then stop", "Find the sum of 3 and 4.") is not None
    assert overlap("Find the sum of 3 and 5", "Find the sum of 3 and 4.") is None
    assert overlap("Find 3 + 4", "Find 3 + 4") is None  # fewer than 5 words would match by chance


def test_the_largest_overlap_is_reported() -> None:
    benchmarks = {
        "some": [Question("long", f"{LONG} {' and then some more words' * 5}")],
        "same": [Question("equal", LONG)],
    }
    found = NgramIndex(benchmarks).find(Question("t", LONG))
    assert found is not None
    assert (found.benchmark, found.benchmark_id, found.share) == ("same", "equal", 1.0)


def test_report() -> None:
    tail = " ".join(f"w{i}" for i in range(100))
    training = [
        Question("1", LONG),
        Question("2", tail),
        Question("3", "an entirely different one"),
    ]
    benchmarks = {"a": [Question("e", LONG)], "b": [Question("f", f"And: {tail}")]}
    report = find_overlaps(training, benchmarks)
    assert report.contaminated == {"1", "2"}
    assert report.by_benchmark == {"a": 1, "b": 1}
    assert str(report) == (
        "2 of 3 problems (66.67%) overlap with evaluation problems (13-grams; 1 with a, 1 with b); 2 share "
        "at least half of the words"
    )
    assert str(find_overlaps([], {})).startswith(
        "0 of 0 problems (0.00%) overlap with evaluation problems (13-grams)"
    )


def test_min_share_keeps_problems_with_common_phrases() -> None:
    training = [Question("same", LONG), Question("phrase", " ".join(LONG.split()[:13]))]
    benchmarks = {"a": [Question("e", LONG)]}
    assert find_overlaps(training, benchmarks, min_share=0.9).contaminated == {"same"}
    assert len(find_overlaps(training, benchmarks, min_share=0.9).overlaps) == 2
    with pytest.raises(ValueError, match="at least 5"):
        find_overlaps(training, benchmarks, ngram=4)


@given(
    before=st.lists(st.sampled_from("pqr"), max_size=20),
    after=st.lists(st.sampled_from("pqr"), max_size=20),
    text=st.lists(st.sampled_from("abcdef"), min_size=5, max_size=40),
)
def test_a_problem_inside_another_is_always_found(
    before: list[str], after: list[str], text: list[str]
) -> None:
    found = overlap(" ".join(before + text + after), " ".join(text))
    assert found is not None
    assert found.share == 1.0


@given(st.lists(st.sampled_from("ab"), max_size=60), st.lists(st.sampled_from("abc"), max_size=60))
def test_agrees_with_sets_of_ngrams(train: list[str], evaluation: list[str]) -> None:
    size = min(6, len(evaluation))
    grams = [{tuple(x[i : i + size]) for i in range(len(x) - size + 1)} for x in (train, evaluation)]
    expected = size >= 5 and bool(grams[0] & grams[1])
    assert (overlap(" ".join(train), " ".join(evaluation), ngram=6) is not None) == expected
