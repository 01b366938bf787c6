"""Fields of a chat request beside deferral and tools, through the real SDK."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from service.engines.base import OPTIONAL_SAMPLING
from tests.support.scripted import EOS, RefusingEngine, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, make_app, serve

MESSAGES: Any = [{"role": "user", "content": "?"}]
THOUGHT = "<think>\nI run it.\n```python\nprint(6 * 7)\n```<tool_call>"


def able(*turns: str) -> ScriptedEngine:
    """An engine that honours every field."""
    engine = ScriptedEngine(*turns)
    engine.capabilities = frozenset(OPTIONAL_SAMPLING)
    return engine


def sandbox() -> ScriptedSandbox:
    return ScriptedSandbox(lambda blocks: printed("42"))


async def ask(served: Served, **options: Any) -> Any:
    return await served.openai.chat.completions.create(
        **{"model": "scripted", "messages": MESSAGES, **options}
    )


async def test_sampling_fields_reach_the_engine() -> None:
    scripted = able(EOS)
    extra = {"repetition_penalty": 1.2, "min_p": 0.1, "top_k": 5}
    async with serve(make_app(scripted, sandbox())) as served:
        await ask(
            served,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            logit_bias={"7": -100, "65": 3},
            logprobs=True,
            top_logprobs=2,
            extra_body=extra,
        )
        await ask(served)
    (_, first), (_, second) = scripted.calls
    assert (first.presence_penalty, first.frequency_penalty, first.repetition_penalty) == (0.5, -0.5, 1.2)
    assert (first.min_p, first.top_k, first.top_logprobs, first.logprobs) == (0.1, 5, 2, True)
    assert dict(first.logit_bias) == {7: -100, 65: 3}
    assert (second.logit_bias, second.logprobs, second.json_schema) == ((), False, None)


class Sum(BaseModel):
    total: int


async def test_sdk_parses_json_of_a_schema() -> None:
    scripted, box = able('{"total": 42}' + EOS), sandbox()
    async with serve(make_app(scripted, box)) as served:
        completion = await served.openai.chat.completions.parse(
            model="scripted", messages=MESSAGES, response_format=Sum
        )
        await ask(served, response_format={"type": "json_object"})
    assert completion.choices[0].message.parsed == Sum(total=42)
    schemas = [json.loads(sampling.json_schema or "") for _, sampling in scripted.calls]
    assert schemas[0]["properties"]["total"]["type"] == "integer"
    assert schemas[1] == {"type": "object"}
    assert box.sessions == []  # no code can be written in JSON


@pytest.mark.parametrize(
    ("response_format", "param", "code"),
    [
        ({"type": "json_object"}, "response_format", "unsupported_parameter"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
            "response_format",
            "unsupported_parameter",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}},
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        ({"type": "xml"}, "response_format", "invalid_value"),
    ],
)
async def test_rejects_response_format_without_engine_support(
    response_format: Any, param: str, code: str
) -> None:
    async with serve(make_app(ScriptedEngine(EOS), sandbox())) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(served, response_format=response_format)
    assert (caught.value.param, caught.value.code) == (param, code)


async def read(asked: Any) -> None:
    """Take a reply to its end, streamed or not."""
    reply = await asked
    if hasattr(reply, "__aiter__"):
        _ = [chunk async for chunk in reply]


async def test_schema_rejected_by_the_engine_is_a_400_with_its_field() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"contains": {}}}}
    function = {"type": "function", "function": {"name": "f", "parameters": {"contains": {}}}}
    async with serve(make_app(RefusingEngine(EOS), sandbox())) as served:
        for options in ({"response_format": form}, {"tools": [function], "tool_choice": "required"}):
            for stream in (False, True):
                with pytest.raises(openai.APIError, match="no 'contains'") as caught:
                    await read(ask(served, **options, stream=stream))
                assert (caught.value.param, caught.value.code) == (next(iter(options)), "invalid_value")
                assert isinstance(caught.value, openai.BadRequestError)


async def test_observations_in_a_thought_stay_in_the_reasoning() -> None:
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    turns = (THOUGHT, " So 42.\n</think>\n\n\\boxed{42}" + EOS)
    async with serve(make_app(able(*turns), sandbox())) as served:
        completion = await ask(served, extra_body=thinking)
    async with serve(make_app(able(*turns), sandbox())) as served:
        stream = await ask(served, extra_body=thinking, stream=True)
        deltas = [chunk.choices[0].delta async for chunk in stream]
    message = completion.choices[0].message
    expected = THOUGHT.removeprefix("<think>\n") + "\nCode execution result: 42\n</tool_call>\n So 42."
    assert message.reasoning == message.reasoning_content == expected
    assert message.content == "\\boxed{42}"
    assert message.executed_tools[0]["status"] == "ok"
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == expected
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == expected
    assert "".join(delta.content or "" for delta in deltas) == "\\boxed{42}"


async def test_reply_can_be_sent_back_unchanged() -> None:
    scripted = able("<think>a</think>b" + EOS)
    async with serve(make_app(scripted, sandbox())) as served:
        first = await ask(served)
        reply = first.choices[0].message
        assert reply.reasoning == "a"
        assert (await ask(served, messages=[*MESSAGES, reply, *MESSAGES])).choices


async def test_stop_strings_are_counted_but_not_returned() -> None:
    scripted = able("one two three" + EOS)
    async with serve(make_app(scripted, sandbox())) as served:
        whole = await ask(served, stop=" thr", logprobs=True)
        stream = await ask(served, stop=["zzz", " two"], stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    [choice] = whole.choices
    assert (choice.message.content, choice.finish_reason) == ("one two", "stop")
    assert "".join(item.token for item in choice.logprobs.content) == "one two"
    assert whole.usage.completion_tokens == len("one two thr")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one"
    assert chunks[-1].usage.completion_tokens == len("one two")


async def test_adapters_are_models() -> None:
    scripted = able(EOS)
    scripted.adapters = ("french",)  # type: ignore[assignment]
    async with serve(make_app(scripted, sandbox())) as served:
        assert [model.id async for model in served.openai.models.list()] == ["scripted", "french"]
        completion = await ask(served, model="french")
        await ask(served)
    assert completion.model == "french"
    assert [sampling.adapter for _, sampling in scripted.calls] == ["french", None]
