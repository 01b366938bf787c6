from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.engines.base import Sampling
from service.engines.transformers.sampling import filter_candidates, sample

VOCABULARY = 50


def logits(rows: int = 1, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def keep_mask(logprobs: torch.Tensor, settings: list[Sampling]) -> torch.Tensor:
    """Return a mask [R, V] of the tokens that pass the filters."""
    _, ids, keep = filter_candidates(logprobs, settings)
    return torch.zeros_like(logprobs, dtype=torch.bool).scatter_(1, ids, keep)


def kept(row: torch.Tensor, settings: Sampling) -> set[int]:
    """Reference implementation of the filters in plain Python."""
    p = row.softmax(-1).tolist()
    order = sorted(range(len(p)), key=lambda i: -p[i])
    if settings.top_k:
        order = order[: settings.top_k]
    total, mass, chosen = sum(p[i] for i in order), 0.0, []
    for i in order:
        if mass >= settings.top_p * total:
            break
        chosen.append(i)
        mass += p[i]
    return {i for i in chosen if p[i] >= settings.min_p * p[order[0]]}


filters = st.builds(
    Sampling,
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.3, 1e-6]),
    top_k=st.sampled_from([0, 1, 2, 7, VOCABULARY - 1, VOCABULARY, 1000]),
    min_p=st.sampled_from([0.0, 0.02, 0.2, 1.0]),
)


@given(st.lists(filters, min_size=1, max_size=5), st.integers(0, 100))
def test_filters_match_a_python_reference(settings: list[Sampling], seed: int) -> None:
    rows = logits(len(settings), seed)
    mask = keep_mask(rows.log_softmax(-1), settings)
    for row, keep, s in zip(rows, mask, settings, strict=True):
        assert set(keep.nonzero()[:, 0].tolist()) == kept(row, s)


# A peaked row is cut among the first candidates, a flat one is not.
@pytest.mark.parametrize("scale", [3.0, 0.01])
def test_filters_in_a_large_vocabulary(scale: float) -> None:
    rows = scale * logits(2, vocabulary=5000)
    settings = [Sampling(top_p=0.7), Sampling(top_k=2000, top_p=0.9)]
    mask = keep_mask(rows.log_softmax(-1), settings)
    for row, keep, s in zip(rows.double(), mask, settings, strict=True):
        assert abs(len(set(keep.nonzero()[:, 0].tolist()) ^ kept(row, s))) <= 2  # float32 sums at the cut


@pytest.mark.parametrize("settings", [Sampling(), Sampling(temperature=0.5), Sampling(top_p=0.7, top_k=9)])
def test_draws_follow_the_distribution(settings: Sampling) -> None:
    row = logits()
    count = 20_000
    uniforms = [(n + 0.5) / count for n in range(count)]  # stratified: the counts are exact to one
    drawn = [d.token_id for d in sample(row.expand(count, -1), [settings] * count, uniforms)]
    p = (row[0] / settings.temperature).softmax(-1)
    allowed = keep_mask(p.log()[None], [settings])[0]
    expected = torch.where(allowed, p, 0) / p[allowed].sum()
    found = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY) / count
    assert (found - expected).abs().max() <= 2 / count


def test_logprobs_are_after_the_temperature_and_before_the_filters() -> None:
    row = logits()
    settings = Sampling(temperature=0.5, top_k=1, top_logprobs=3)
    (draw,) = sample(row, [settings], [0.9])
    expected = (row[0] / 0.5).log_softmax(-1)
    assert draw.token_id == expected.argmax()
    assert draw.logprob == pytest.approx(expected.max().item(), abs=1e-6)
    assert [t.logprob for t in draw.top_logprobs] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-6)
    assert [t.token_id for t in draw.top_logprobs] == expected.topk(3).indices.tolist()


def test_greedy_returns_argmax_with_plain_logprob() -> None:
    row = logits()
    for temperature in (0.0, 1e-9):
        (draw,) = sample(row, [Sampling(temperature=temperature)], [0.999])
        assert draw.token_id == row.argmax()
        assert draw.logprob == pytest.approx(row[0].log_softmax(-1).max().item(), abs=1e-6)


@given(
    st.lists(
        st.builds(
            Sampling,
            temperature=st.sampled_from([0.0, 0.7, 1.0]),
            top_p=st.sampled_from([1.0, 0.7]),
            top_k=st.sampled_from([0, 5]),
            top_logprobs=st.integers(0, 3),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_rows_are_independent(settings: list[Sampling]) -> None:
    rows = logits(len(settings))
    uniforms = [random.Random(n).random() for n in range(len(settings))]
    together = sample(rows, settings, uniforms)
    for n, s in enumerate(settings):
        (alone,) = sample(rows[n : n + 1], [s], [uniforms[n]])
        assert alone.token_id == together[n].token_id
        assert alone.logprob == pytest.approx(together[n].logprob, abs=1e-6)
        assert len(together[n].top_logprobs) == s.top_logprobs


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_zero_probability_tokens_are_never_drawn(uniform: float) -> None:
    row = torch.tensor([[-math.inf, 1.0, 0.0, -math.inf]])
    (draw,) = sample(row, [Sampling()], [uniform])
    assert draw.token_id == (1 if uniform == 0 else 2)


def test_non_finite_logits_give_non_finite_logprob() -> None:
    rows = logits(3)
    rows[1] = math.nan
    draws = sample(rows, [Sampling(), Sampling(), Sampling(temperature=0)], [0.5] * 3)
    assert [math.isfinite(d.logprob) for d in draws] == [True, False, True]
