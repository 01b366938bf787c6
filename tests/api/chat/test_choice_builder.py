from __future__ import annotations

from typing import Any

from service.api.chat.choice_builder import MessageText, Reply, usage
from service.deferral.episode import Outcome
from service.engines.base import TokenChunk, TopLogprob
from service.episode.events import Finished, Observed, Sampled
from tests.support.scripted import EOS, ScriptedEngine

ENGINE = ScriptedEngine(EOS)
[EOS_ID] = ENGINE.eos_token_ids


def reply(**options: Any) -> Reply:
    return Reply(0, ENGINE, MessageText("", "", None), **{"logprobs": False, "thinks": False, **options})


def chunk(text: str, *, stop: bool = False, **options: Any) -> Sampled:
    ids = tuple(map(ord, text)) + ((EOS_ID,) if stop else ())
    return Sampled(TokenChunk(ids, text + (EOS if stop else ""), (-1.0,) * len(ids), **options))


def test_the_stop_token_is_counted_and_no_part_of_the_content() -> None:
    one = reply()
    delta = one.take(chunk("ab", stop=True))
    assert delta is not None
    assert delta.delta == {"content": "ab"}
    assert one.take(chunk("", stop=True)) is None
    assert one.sampled_tokens == 4  # a, b, and each end


def test_half_a_character_is_held_back_but_counted() -> None:
    one = reply()
    assert one.take(Sampled(TokenChunk((1,), "", (-1.0,)))) is None
    assert one.sampled_tokens == 1


def test_alternatives_and_tokens_without_known_bytes() -> None:
    one = reply(logprobs=True)
    one.take(chunk("\ufffd", top_logprobs=((TopLogprob(ord("x"), float("-inf")),),)))
    choice: Any = one.choice()
    [item] = choice["logprobs"]["content"]
    assert item["bytes"] is None
    assert item["top_logprobs"] == [{"token": "x", "logprob": -9999.0, "bytes": [120]}]


def test_how_it_ended() -> None:
    for outcome, reason in [
        (Outcome.ANSWER, "stop"),
        (Outcome.BOXED_OUTPUT, "stop"),
        (Outcome.VOID, "stop"),
        (Outcome.TURN_LIMIT, "length"),
        (Outcome.LENGTH, "length"),
    ]:
        delta = reply().take(Finished(outcome))
        assert delta is not None
        assert delta.finish_reason == reason


def test_thinking_is_counted_up_to_its_end() -> None:
    class Thinker(ScriptedEngine):
        def __init__(self) -> None:
            super().__init__(EOS)
            self.tokenizer.token_id = lambda token: ord("|")  # type: ignore[method-assign]

    one = Reply(0, Thinker(), MessageText("", "", None), logprobs=False, thinks=True)
    one.take(chunk("hm"))
    one.take(chunk("m|so"))
    one.take(chunk("on"))
    assert one.reasoning_tokens == 4
    assert one.sampled_tokens == 8


def test_usage_counts_the_prompt_once_and_observations_apart() -> None:
    first, second = reply(), reply()
    first.take(chunk("abc"))
    first.take(Observed((1, 2), "xy"))
    second.take(chunk("d"))
    assert usage(10, [first, second]) == {
        "prompt_tokens": 10,
        "completion_tokens": 6,
        "total_tokens": 16,
        "completion_tokens_details": {"reasoning_tokens": 0, "observation_tokens": 2},
    }


def test_cached_tokens_are_those_of_the_prompt() -> None:
    first, second = reply(), reply()
    first.take(chunk("a", cached_tokens=5))
    first.take(chunk("b", cached_tokens=9))  # a later turn
    second.take(chunk("a", cached_tokens=7))
    assert usage(10, [first, second])["prompt_tokens_details"] == {"cached_tokens": 5}
