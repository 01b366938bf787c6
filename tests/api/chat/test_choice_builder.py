from __future__ import annotations

from typing import Any

from service.api.chat.choice_builder import ChoiceBuilder, chat_usage
from service.deferral.episode import Outcome
from service.engines.base import TokenChunk, TopLogprob
from service.episode.accumulator import ReplyAccumulator, Usage
from service.episode.events import Finished, Sampled
from tests.support.scripted import EOS, ScriptedEngine

ENGINE = ScriptedEngine(EOS)
[EOS_ID] = ENGINE.eos_token_ids
ENDINGS = {EOS_ID: EOS}


def builder(*, logprobs: bool = False) -> ChoiceBuilder:
    return ChoiceBuilder(
        0, ReplyAccumulator(ENGINE.tokenizer, ENDINGS), ENGINE.tokenizer if logprobs else None
    )


def chunk(text: str, *, stop: bool = False, **options: Any) -> Sampled:
    ids = tuple(map(ord, text)) + ((EOS_ID,) if stop else ())
    return Sampled(TokenChunk(ids, text + (EOS if stop else ""), (-1.0,) * len(ids), **options))


def test_end_token_is_not_content() -> None:
    choice = builder()
    delta = choice.add(chunk("ab", stop=True))
    assert delta is not None
    assert delta.delta == {"content": "ab"}
    assert choice.add(chunk("", stop=True)) is None


def test_half_a_character_is_held_back_but_counted() -> None:
    choice = builder()
    assert choice.add(Sampled(TokenChunk((1,), "", (-1.0,)))) is None
    assert choice.reply.sampled_tokens == 1


def test_logprobs_of_alternatives_and_of_tokens_with_unknown_bytes() -> None:
    choice = builder(logprobs=True)
    choice.add(chunk("\ufffd", top_logprobs=((TopLogprob(ord("x"), float("-inf")),),)))
    body: Any = choice.choice()
    [item] = body["logprobs"]["content"]
    assert item["bytes"] is None
    assert item["top_logprobs"] == [{"token": "x", "logprob": -9999.0, "bytes": [120]}]


def test_finish_reason_of_each_outcome() -> None:
    for outcome, reason in [
        (Outcome.ANSWER, "stop"),
        (Outcome.BOXED_OUTPUT, "stop"),
        (Outcome.VOID, "stop"),
        (Outcome.TURN_LIMIT, "length"),
        (Outcome.LENGTH, "length"),
    ]:
        delta = builder().add(Finished(outcome))
        assert delta is not None
        assert delta.finish_reason == reason


def test_usage_lists_observations_and_cached_tokens_apart() -> None:
    assert chat_usage(Usage(10, 4, 2, 3, cached_tokens=None)) == {
        "prompt_tokens": 10,
        "completion_tokens": 6,
        "total_tokens": 16,
        "completion_tokens_details": {"reasoning_tokens": 3, "observation_tokens": 2},
    }
    cached = chat_usage(Usage(10, 4, 2, 3, cached_tokens=5))
    assert cached["prompt_tokens_details"] == {"cached_tokens": 5}
