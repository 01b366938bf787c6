from __future__ import annotations

from collections import Counter

import pytest
import torch

from service.engines.base import Sampling
from service.engines.transformers.sampling import History, adjust

LOGITS = torch.tensor([[1.0, -1.0, 2.0, 0.5]])


def adjusted(prompt: list[int], sampled: list[int], **options: object) -> list[float]:
    history = History(frozenset(prompt), Counter(sampled))
    return adjust(LOGITS, [Sampling(**options)], [history])[0].tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"presence_penalty": 0.25}, [1.0, -1.25, 1.75, 0.5]),
        ({"frequency_penalty": 0.25}, [1.0, -1.25, 1.5, 0.5]),
        # The prompt counts only for the repetition penalty, which also lowers negative logits.
        ({"repetition_penalty": 2.0}, [0.5, -2.0, 1.0, 0.5]),
        ({"logit_bias": ((3, 5.0), (0, -100.0))}, [-99.0, -1.0, 2.0, 5.5]),
        # The bias is applied first; the penalty halves the result.
        ({"logit_bias": ((0, 1.0),), "repetition_penalty": 2.0}, [1.0, -2.0, 1.0, 0.5]),
    ],
)
def test_penalty_formulas(options: dict[str, object], expected: list[float]) -> None:
    assert adjusted([0], [2, 1, 2], **options) == pytest.approx(expected)
    assert LOGITS.tolist() == [[1.0, -1.0, 2.0, 0.5]]


def test_no_penalties_before_the_first_sample() -> None:
    assert adjusted([0], [], presence_penalty=1.0, frequency_penalty=1.0) == LOGITS[0].tolist()


def test_stop_tokens_are_masked_until_min_tokens() -> None:
    for sampled, kept_out in (([], True), ([1], True), ([1, 1], False)):
        history = History(frozenset(), Counter(sampled), (2,))
        [row] = adjust(LOGITS, [Sampling(min_tokens=2)], [history]).tolist()
        assert row == [1.0, -1.0, float("-inf") if kept_out else 2.0, 0.5]


def test_rows_without_history_are_unchanged() -> None:
    two = LOGITS.repeat(2, 1)
    settings = [Sampling(), Sampling(presence_penalty=1)]
    rows = adjust(two, settings, [None, History(frozenset(), Counter([0]))])
    assert rows[0].tolist() == LOGITS[0].tolist()
    assert rows[1, 0] == 0.0
    assert adjust(two, settings, [None, None]) is two


def test_has_penalties() -> None:
    assert not Sampling(temperature=0.5, top_p=0.9).has_penalties
    for options in (
        {"presence_penalty": 1},
        {"frequency_penalty": -1},
        {"repetition_penalty": 0.9},
        {"min_tokens": 1},
    ):
        assert Sampling(**options).has_penalties  # type: ignore[arg-type]
    assert Sampling(logit_bias=((1, 0.0),)).has_penalties
