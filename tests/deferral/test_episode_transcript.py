from __future__ import annotations

import pytest

from service.deferral.episode import Transcript


def test_lists_stay_aligned() -> None:
    transcript = Transcript([1, 2])
    transcript.add_sampled([3, 4], "ab", [-0.1, -0.2])
    transcript.add_observation([5], "c")
    assert transcript.context_ids == [1, 2, 3, 4, 5]
    assert transcript.mask == [1, 1, 0]
    assert transcript.logprobs == [-0.1, -0.2, 0.0]
    assert transcript.text == "abc"
    assert (transcript.sampled_tokens, transcript.observation_tokens) == (2, 1)


def test_a_missing_logprob_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 ids but 1 logprobs"):
        Transcript([]).add_sampled([1, 2], "ab", [-0.1])
