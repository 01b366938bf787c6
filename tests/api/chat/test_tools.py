"""The client's own functions, through the real SDK."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, make_app, serve

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
ULM = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
MESSAGES: Any = [{"role": "user", "content": "Weather in Ulm?"}]


def sandbox() -> ScriptedSandbox:
    return ScriptedSandbox(lambda blocks: printed(""))


async def ask(served: Served, **options: Any) -> Any:
    asked = {"model": "scripted", "messages": MESSAGES, "tools": TOOLS, **options}
    return await served.openai.chat.completions.create(**asked)


async def test_round_trip_with_two_calls() -> None:
    scripted, box = ScriptedEngine(f"I look.\n{ULM}\n{NOW}{EOS}", f"Sunny.{EOS}"), sandbox()
    async with serve(make_app(scripted, box)) as served:
        first = await ask(served)
        [choice] = first.choices
        answers = [
            {"role": "tool", "tool_call_id": call.id, "content": f"result of {call.function.name}"}
            for call in choice.message.tool_calls
        ]
        second = await ask(served, messages=[*MESSAGES, choice.message, *answers])
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    assert [(call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [
        ("weather", '{"city": "Ulm"}'),
        ("now", "{}"),
    ]
    assert second.choices[0].message.content == "Sunny."
    assert second.choices[0].finish_reason == "stop"
    # The ordinary way: no sandbox, no instruction, and the functions in the prompt.
    assert box.sessions == []
    prompts = [scripted.tokenizer.decode(ids) for ids, _ in scripted.calls]
    assert prompts[0].endswith("user: Weather in Ulm?\n")
    assert '"name": "weather"' in prompts[0]
    assert '"arguments": {"city": "Ulm"}' in prompts[1]
    assert "tool: result of weather\ntool: result of now\n" in prompts[1]


async def test_sdk_accumulates_streamed_calls() -> None:
    async with (
        serve(make_app(ScriptedEngine(f"I look.\n{ULM}\n{NOW}{EOS}"), sandbox())) as served,
        served.openai.chat.completions.stream(model="scripted", messages=MESSAGES, tools=TOOLS) as stream,
    ):
        pieces = [
            event.arguments_delta
            async for event in stream
            if event.type == "tool_calls.function.arguments.delta"
        ]
        completion: Any = await stream.get_final_completion()
    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [
        {"city": "Ulm"},
        {},
    ]
    assert len(pieces) > 5  # they came as they were written


async def reasons(stream: Any) -> None:
    async for chunk in stream:
        assert chunk.choices[0].finish_reason is None


@pytest.mark.parametrize(
    "written",
    [
        '<tool_call>{"name": "weather", "arguments": {"city": 5}}</tool_call>',
        '<tool_call>{"name": "rain", "arguments": {}}</tool_call>',
        "<tool_call>weather(Ulm)</tool_call>",
    ],
)
async def test_strict_tool_calls_reject_invalid_calls(written: str) -> None:
    strict = {"extra_body": {"strict_tool_calls": True}}
    async with serve(make_app(ScriptedEngine(written + EOS), sandbox())) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(served, **strict)
        assert caught.value.code == "tool_use_failed"
        assert caught.value.body["failed_generation"]  # type: ignore[index]
        stream = await ask(served, stream=True, **strict)
        with pytest.raises(openai.APIError, match="is invalid"):
            await reasons(stream)


@pytest.mark.parametrize(
    "written",
    [
        '<tool_call>{"name": "rain", "arguments": {}}</tool_call>',
        "<tool_call>weather(Ulm)</tool_call> and more",
        "I look.\n\n<tool_call>\n",
        '<tool_call>{"name": "weather", "arguments": {"city": }}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": "Ulm',
    ],
)
async def test_unparsable_call_is_text(written: str) -> None:
    async with serve(make_app(ScriptedEngine(written + EOS), sandbox())) as served:
        [choice] = (await ask(served)).choices
        stream = [chunk.choices[0] async for chunk in await ask(served, stream=True)]
    assert (choice.message.content, choice.message.tool_calls) == (written, None)
    assert choice.finish_reason == stream[-1].finish_reason == "stop"
    assert "".join(part.delta.content or "" for part in stream) == written


async def test_call_that_violates_its_schema_is_passed_on() -> None:
    written = '<tool_call>{"name": "weather", "arguments": {"city": 5}}</tool_call>'
    async with serve(make_app(ScriptedEngine(written + EOS), sandbox())) as served:
        [choice] = (await ask(served)).choices
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": 5}


async def test_tools_of_other_types_are_ignored_unless_required() -> None:
    scripted = ScriptedEngine(f"No.{EOS}")
    others: Any = [{"type": "web_search"}, {"type": "computer"}]
    async with serve(make_app(scripted, sandbox())) as served:
        raw = await served.openai.chat.completions.with_raw_response.create(
            model="scripted", messages=MESSAGES, tools=[*TOOLS, *others]
        )
        assert raw.headers["x-ih-grpo-ignored"] == "tools[2], tools[3]"
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(served, tools=others, tool_choice="required")
    assert caught.value.param == "tool_choice"
    assert "computer" not in scripted.tokenizer.decode(scripted.calls[0][0])


@pytest.mark.parametrize(
    ("arguments", "shown"), [("", "{}"), ('{"city": "Ul', '"{\\"city\\": \\"Ul"'), ("[1]", '"[1]"')]
)
async def test_invalid_arguments_in_the_history_are_unchanged(arguments: str, shown: str) -> None:
    scripted = ScriptedEngine(f"Sorry.{EOS}")
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    turns: Any = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "error"},
    ]
    async with serve(make_app(scripted, sandbox())) as served:
        await ask(served, messages=turns)
    assert f'"arguments": {shown}' in scripted.tokenizer.decode(scripted.calls[0][0])


async def test_tool_choice_values() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    scripted = ScriptedEngine(f' {{"city": "Ulm"}}}}\n</tool_call>{EOS}')
    async with serve(make_app(scripted, sandbox())) as served:
        completion = await ask(served, tool_choice=named)
    [call] = completion.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Ulm"})
    assert scripted.tokenizer.decode(scripted.calls[0][0]).endswith(
        '<tool_call>\n{"name": "weather", "arguments":'
    )

    scripted = ScriptedEngine(f'{{"name": "now", "arguments": {{}}}}\n</tool_call>{EOS}')
    async with serve(make_app(scripted, sandbox())) as served:
        completion = await ask(served, tool_choice="required")
    assert completion.choices[0].message.tool_calls[0].function.name == "now"
    assert scripted.calls[0][1].json_schema is None

    scripted = ScriptedEngine(f"None is called.{EOS}")
    async with serve(make_app(scripted, sandbox())) as served:
        completion = await ask(served, tool_choice="none")
    assert completion.choices[0].message.content == "None is called."
    assert "weather" not in scripted.tokenizer.decode(scripted.calls[0][0])


async def test_engine_enforces_the_schema_of_arguments() -> None:
    scripted = ScriptedEngine(f'{{"city": "Ulm"}}{EOS}')
    scripted.capabilities = frozenset({"json_schema"})
    named = {"type": "function", "function": {"name": "weather"}}
    async with serve(make_app(scripted, sandbox())) as served:
        completion = await ask(served, tool_choice=named)
    assert completion.choices[0].message.tool_calls[0].function.arguments == '{"city": "Ulm"}'
    assert completion.choices[0].finish_reason == "tool_calls"
    assert json.loads(scripted.calls[0][1].json_schema or "") == TOOLS[0]["function"]["parameters"]


async def test_parallel_tool_calls_false_allows_one_call() -> None:
    scripted = ScriptedEngine(ULM + NOW + EOS)
    async with serve(make_app(scripted, sandbox())) as served:
        completion = await ask(served, parallel_tool_calls=False)
        both = await ask(served)
    assert [call.function.name for call in completion.choices[0].message.tool_calls] == ["weather"]
    assert completion.choices[0].finish_reason == "tool_calls"
    assert len(both.choices[0].message.tool_calls) == 2


async def test_token_limit_inside_a_call() -> None:
    async with serve(make_app(ScriptedEngine(ULM), sandbox())) as served:
        completion = await ask(served, max_tokens=40)
    [choice] = completion.choices
    assert choice.finish_reason == "length"
    written = choice.message.tool_calls[0].function.arguments
    assert written
    assert '{"city": "Ulm"}'.startswith(written)


BAD: list[tuple[dict[str, Any], str | None]] = [
    ({"extra_body": {"deferral": {"max_turns": 2}}}, "deferral"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    (
        {"tool_choice": "required", "extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
        "tool_choice",
    ),
    ({"tool_choice": {"type": "function", "function": {"name": "rain"}}}, "tool_choice.function.name"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 1}}}]},
        "tools[0].function.parameters",
    ),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
]


@pytest.mark.parametrize(("options", "param"), BAD, ids=[str(i) for i in range(len(BAD))])
async def test_unsupported_values_are_rejected_by_name(options: dict[str, Any], param: str | None) -> None:
    async with serve(make_app(ScriptedEngine(EOS), sandbox())) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(served, **options)
    assert caught.value.param == param, caught.value
