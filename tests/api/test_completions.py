from __future__ import annotations

from typing import Any

import openai
import pytest

from service.engines.base import OPTIONAL_SAMPLING
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, make_app, serve


def engine(*turns: str) -> ScriptedEngine:
    """An engine that honours every field."""
    scripted = ScriptedEngine(*turns)
    scripted.capabilities = frozenset(OPTIONAL_SAMPLING)
    return scripted


def serving(scripted: ScriptedEngine, **options: Any) -> Any:
    return serve(make_app(scripted, ScriptedSandbox(lambda blocks: printed("")), **options))


async def ask(served: Served, prompt: Any = "Once", **options: Any) -> Any:
    return await served.openai.completions.create(**{"model": "scripted", "prompt": prompt, **options})


async def test_continues_a_text_without_running_code() -> None:
    scripted = engine(" upon\n```python\nprint(1)\n```<tool_call>" + EOS)
    async with serving(scripted) as served:
        completion = await ask(served, max_tokens=100, temperature=0.5, seed=3)
    [choice] = completion.choices
    assert (choice.text, choice.finish_reason) == (" upon\n```python\nprint(1)\n```<tool_call>", "stop")
    prompt, sampling = scripted.calls[0]
    assert scripted.tokenizer.decode(prompt) == "Once"
    assert (sampling.temperature, sampling.seed, sampling.max_tokens) == (0.5, 3, 100)
    assert completion.object == "text_completion"
    assert completion.usage.prompt_tokens == 4
    assert completion.usage.total_tokens == 4 + completion.usage.completion_tokens


async def test_default_limit_is_sixteen_tokens() -> None:
    async with serving(engine("x" * 50)) as served:
        [choice] = (await ask(served)).choices
        [none] = (await ask(served, max_tokens=0)).choices
    assert (choice.text, choice.finish_reason) == ("x" * 16, "length")
    assert (none.text, none.finish_reason) == ("", "length")


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("ab", ["ab"]), (["ab", "c"], ["ab", "c"]), ([97, 98], ["ab"]), ([[97], [98, 99]], ["a", "bc"])],
)
async def test_accepts_prompts_of_text_and_tokens(prompt: Any, read: list[str]) -> None:
    scripted = engine("!" + EOS)
    async with serving(scripted) as served:
        completion = await ask(served, prompt, n=2, echo=True)
        stream = await ask(served, prompt, n=2, echo=True, stream=True)
        texts: dict[int, str] = {}
        async for chunk in stream:
            index = chunk.choices[0].index
            texts[index] = texts.get(index, "") + chunk.choices[0].text
    expected = [f"{text}!" for text in read for _ in range(2)]
    assert [choice.text for choice in completion.choices] == expected
    assert [choice.index for choice in completion.choices] == list(range(len(expected)))
    assert [texts[index] for index in sorted(texts)] == expected
    asked = sorted(scripted.tokenizer.decode(ids) for ids, _ in scripted.calls)
    assert asked == sorted(read * 4)


async def test_stream_ends_with_finish_reason_and_usage() -> None:
    async with serving(engine("Hello." + EOS)) as served:
        stream = await ask(served, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "Hello."
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], len("Hello.") + 1)


async def test_logprobs_in_the_legacy_form() -> None:
    async with serving(engine("Hi." + EOS)) as served:
        whole = (await ask(served, logprobs=2)).choices[0].logprobs
        stream = await ask(served, logprobs=2, stream=True)
        tokens = [
            token async for chunk in stream for token in getattr(chunk.choices[0].logprobs, "tokens", [])
        ]
    assert whole.tokens == tokens == ["H", "i", ".", EOS]  # with the token that ends it, as in vLLM
    assert whole.token_logprobs == [-0.5] * 4
    assert whole.text_offset == [0, 1, 2, 3]
    assert whole.top_logprobs == [{"H": -0.5}, {"i": -0.5}, {".": -0.5}, {EOS: -0.5}]


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
async def test_echoed_prompt_has_logprobs(max_tokens: int) -> None:
    scripted = engine("Hi." + EOS)
    scripted.capabilities = frozenset({"top_logprobs", "prompt_logprobs"})
    async with serving(scripted) as served:
        options = {"echo": True, "logprobs": 1, "max_tokens": max_tokens}
        [whole] = (await ask(served, ["abc"], **options)).choices
        completion = await ask(served, ["abc"], **options)
        stream = await ask(served, ["abc"], **options, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
    written = ["H", "i", ".", EOS][:max_tokens]
    assert whole.logprobs.tokens == ["a", "b", "c", *written]
    assert whole.logprobs.token_logprobs == [None, -1.0, -2.0, *[-0.5] * len(written)]
    assert whole.logprobs.top_logprobs[:3] == [None, {"b": -1.0, "x": -0.25}, {"c": -2.0, "x": -0.25}]
    assert whole.logprobs.text_offset == list(range(len(whole.logprobs.tokens)))
    assert whole.text == "".join(chunk.text for chunk in chunks) == "abc" + "Hi."[:max_tokens]
    streamed = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.tokens]
    assert streamed == whole.logprobs.tokens
    assert completion.usage.completion_tokens == len(written)
    assert whole.finish_reason == ("stop" if max_tokens == 5 else "length")


async def test_stop_strings_and_stop_tokens() -> None:
    scripted = engine("one two" + EOS + "three<tool_call>")
    async with serving(scripted) as served:
        cut = await ask(served, stop=" t", max_tokens=50)
        stopped = await ask(served, max_tokens=50, extra_body={"stop_token_ids": [ord("w")]})
        on = await ask(served, max_tokens=50, extra_body={"ignore_eos": True, "stop_token_ids": [ord("h")]})
    assert cut.choices[0].text == "one"
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("one t", "stop")
    assert on.choices[0].text == f"one two{EOS}t"


async def test_min_tokens_reaches_the_engine() -> None:
    scripted = engine("x" * 9)
    async with serving(scripted) as served:
        await ask(served, extra_body={"min_tokens": 5})
        await ask(served, extra_body={"min_tokens": 0, "do_sample": False})
        with pytest.raises(openai.BadRequestError, match="at most 16") as caught:
            await ask(served, extra_body={"min_tokens": 17})
    assert caught.value.param == "min_tokens"
    assert [sampling.min_tokens for _, sampling in scripted.calls] == [5, 0]
    assert scripted.calls[1][1].temperature == 0


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"best_of": 3}, "best_of", "unsupported_parameter"),
    ({"suffix": "x"}, "suffix", "unsupported_parameter"),
    ({"n": 99}, "n", "invalid_value"),
    ({"prompt": ["a"] * 33}, "prompt", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": ""}, "prompt", "invalid_value"),
    ({"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
    ({"prompt": [1, 2**30]}, "prompt[1]", "invalid_value"),
    ({"prompt": [[1], [2**30]]}, "prompt[1][0]", "invalid_value"),
    ({"prompt": {"a": 1}}, "prompt", "invalid_value"),
    ({"prompt": "x" * 20_000}, "prompt", "context_length_exceeded"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias", "invalid_value"),
    ({"extra_body": {"sufix": "x"}}, "sufix", "unknown_parameter"),
]


@pytest.mark.parametrize(
    ("options", "param", "code"), BAD, ids=[bad[1] + str(i) for i, bad in enumerate(BAD)]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_unsupported_values_are_rejected_by_name(
    options: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    async with serving(engine("x" + EOS)) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(served, **options, stream=stream)
    assert (caught.value.param, caught.value.code) == (param, code)


async def test_accepts_best_of_equal_to_n() -> None:
    async with serving(engine("x" + EOS)) as served:
        assert len((await ask(served, best_of=2, n=2)).choices) == 2
        assert (await ask(served, best_of=1)).choices


async def test_json_schema_reaches_the_engine() -> None:
    scripted = engine("{}" + EOS)
    async with serving(scripted) as served:
        await ask(served, extra_body={"response_format": {"type": "json_object"}})
    assert scripted.calls[0][1].json_schema == '{"type": "object"}'
