"""Custom tools, on chat completions and the Responses API."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import openai
import pytest
from pydantic import ValidationError

from service.api.tools.custom import CustomFields, CustomFormat, input_of, input_schema
from tests.support.response_events import checked, collected, kinds
from tests.support.responses_api import ask, prompt, sandbox, serving
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import make_app, serve

CALL = '<tool_call>\n{"name": "patch", "arguments": {"input": "*** Begin\\n\\"a\\""}}\n</tool_call>'
INPUT = '*** Begin\n"a"'
REGEX = {"syntax": "regex", "definition": "[a-z]+ [0-9]+"}
LARK = {"syntax": "lark", "definition": 'start: "a"+'}
CHAT_TOOL: Any = {"type": "custom", "custom": {"name": "patch", "description": "Edit a file."}}
TOOL: Any = {"type": "custom", "name": "patch", "description": "Edit a file."}
MESSAGES: Any = [{"role": "user", "content": "hi"}]


def chat_tool(**grammar: str) -> Any:
    return {"type": "custom", "custom": {"name": "patch", "format": {"type": "grammar", "grammar": grammar}}}


def test_regex_is_part_of_the_schema() -> None:
    rules = CustomFormat.model_validate({"type": "grammar", **REGEX}).rules
    validator = jsonschema_rs.validator_for(input_schema(rules))
    assert validator.is_valid({"input": "abc 12"})
    assert not any(validator.is_valid({"input": text}) for text in ("abc", "abc 12!", "1 1"))
    assert CustomFormat().rules is None


def test_model_reads_the_grammar() -> None:
    fields = CustomFields.model_validate(
        {"name": "x", "description": "D.", "format": {"type": "grammar", "grammar": LARK}}
    )
    assert fields.as_function()["description"] == 'D.\n\nThe input must match this Lark grammar:\nstart: "a"+'


@pytest.mark.parametrize(
    "given",
    [
        {"type": "grammar"},
        {"type": "grammar", "syntax": "regex"},
        {"type": "grammar", "grammar": {"syntax": "regex", "definition": "("}},
        {"type": "grammar", "grammar": {"syntax": "gbnf", "definition": "x"}},
        {"type": "image"},
    ],
)
def test_invalid_format_is_rejected(given: Any) -> None:
    with pytest.raises(ValidationError):
        CustomFormat.model_validate(given)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [('{"input": "a\\nb"}', "a\nb"), ('{"input": 3}', '{"input": 3}'), ("oops", "oops"), ("[1]", "[1]")],
)
def test_input_is_read_from_arguments(arguments: str, text: str) -> None:
    assert input_of(arguments) == text


@pytest.mark.parametrize("streamed", [False, True])
async def test_chat_calls_a_custom_tool(streamed: bool) -> None:
    scripted = ScriptedEngine("I do." + CALL + EOS)
    options: Any = {"model": "scripted", "messages": MESSAGES, "tools": [CHAT_TOOL]}
    async with serve(make_app(scripted, sandbox())) as served:
        if streamed:
            stream = await served.openai.chat.completions.create(**options, stream=True)
            deltas = [chunk.choices[0].delta.tool_calls async for chunk in stream if chunk.choices]
            [[call]] = [calls for calls in deltas if calls]
            entry = call.model_dump()
        else:
            choice = (await served.openai.chat.completions.create(**options)).choices[0]
            assert choice.finish_reason == "tool_calls"
            entry = choice.message.tool_calls[0].model_dump()
        back = {
            "role": "assistant",
            "tool_calls": [{"id": entry["id"], "type": "custom", "custom": entry["custom"]}],
        }
        answer = {"role": "tool", "tool_call_id": entry["id"], "content": "done"}
        await served.openai.chat.completions.create(**{**options, "messages": [*MESSAGES, back, answer]})
    assert (entry["type"], entry["custom"]) == ("custom", {"name": "patch", "input": INPUT})
    assert json.dumps({"input": INPUT}) in prompt(scripted)
    assert '"type": "function", "function": {"name": "patch"' in prompt(scripted)


async def test_responses_call_a_custom_tool() -> None:
    scripted = ScriptedEngine("I do.\n" + CALL + EOS, "Done." + EOS)
    async with serving(scripted) as served:
        events = await collected(await ask(served, tools=[TOOL], stream=True))
        final = checked(events)
        _, call = final["output"]
        assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "patch", INPUT)
        assert "custom_tool_call_input.done" in kinds(events)
        output: Any = [{"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "done"}]
        second = await ask(served, output, tools=[TOOL], previous_response_id=final["id"])
    assert second.output_text == "Done."
    assert "tool: done" in prompt(scripted)
    assert final["tools"][0]["type"] == "custom"


async def test_forced_call_follows_the_regex() -> None:
    scripted = ScriptedEngine(' {"input": "abc 12"}}\n</tool_call>' + EOS)
    scripted.capabilities = frozenset({"json_schema"})
    async with serve(make_app(scripted, sandbox())) as served:
        completion = await served.openai.chat.completions.create(
            model="scripted",
            messages=MESSAGES,
            tools=[chat_tool(**REGEX)],
            tool_choice={"type": "custom", "custom": {"name": "patch"}},
        )
        response = await served.openai.responses.create(
            model="scripted",
            input="hi",
            tools=[{**TOOL, "format": {"type": "grammar", **REGEX}}],  # type: ignore[list-item]
            tool_choice={"type": "custom", "name": "patch"},
        )
    [call] = completion.choices[0].message.tool_calls or []
    assert call.model_dump()["custom"] == {"name": "patch", "input": "abc 12"}
    assert response.output[0].model_dump()["input"] == "abc 12"
    for _, sampling in scripted.calls:
        pattern = json.loads(sampling.json_schema or "")["properties"]["input"]["pattern"]
        assert pattern == "^(?:[a-z]+ [0-9]+)$"


async def test_lark_grammar_is_shown_and_reported() -> None:
    scripted = ScriptedEngine("Hello." + EOS)
    async with serve(make_app(scripted, sandbox())) as served:
        raw = await served.openai.chat.completions.with_raw_response.create(
            model="scripted", messages=MESSAGES, tools=[chat_tool(**LARK)]
        )
        with pytest.raises(openai.BadRequestError) as caught:
            await served.openai.chat.completions.create(
                model="scripted", messages=MESSAGES, tools=[chat_tool(syntax="regex", definition="(")]
            )
    assert raw.headers["x-ih-grpo-ignored"] == "tools[0].custom.format"
    assert "The input must match this Lark grammar" in prompt(scripted)
    assert caught.value.param == "tools[0].custom.format.grammar.definition"
