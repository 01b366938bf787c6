"""The client's own functions."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.support.response_events import checked, collected, kinds
from tests.support.responses_api import ask, prompt, sandbox, serving
from tests.support.scripted import EOS, ScriptedEngine

TOOLS: Any = [
    {
        "type": "function",
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
    {"type": "function", "name": "now", "parameters": None, "strict": None},
]
ULM = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
BONN = ULM.replace("Ulm", "Bonn")
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


async def test_calls_round_trip_by_previous_response() -> None:
    scripted, box = ScriptedEngine(f"I look.\n{ULM}\n{NOW}{EOS}", f"Sunny.{EOS}"), sandbox()
    async with serving(scripted, box) as served:
        events = await collected(await ask(served, tools=TOOLS, stream=True))
        final = checked(events)
        message, ulm, now = final["output"]
        answers: Any = [
            {"type": "function_call_output", "call_id": call["call_id"], "output": f"of {call['name']}"}
            for call in (ulm, now)
        ]
        second = await ask(served, answers, tools=TOOLS, previous_response_id=final["id"])
        by_hand = await ask(
            served, [{"role": "user", "content": "?"}, *final["output"], *answers], tools=TOOLS
        )
    assert kinds(events, "output_text.delta", "function_call_arguments.delta") == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        *["output_item.added", "function_call_arguments.done", "output_item.done"] * 2,
        "completed",
    ]
    assert message["content"][0]["text"] == "I look."
    assert (ulm["name"], ulm["arguments"]) == ("weather", '{"city": "Ulm"}')
    assert (now["name"], now["arguments"]) == ("now", "{}")
    assert second.output_text == by_hand.output_text == "Sunny."
    assert "tool: of weather\ntool: of now\n" in prompt(scripted)
    assert box.sessions == []


async def test_sdk_helper_accumulates_calls() -> None:
    async with (
        serving(ScriptedEngine(ULM + EOS)) as served,
        served.openai.responses.stream(model="scripted", input="?", tools=TOOLS) as stream,
    ):
        response: Any = await stream.get_final_response()
    assert response.output[0].arguments == '{"city": "Ulm"}'
    assert response.tools[0].name == "weather"


async def test_sdk_helper_accumulates_arguments_of_each_call() -> None:
    async with (
        serving(ScriptedEngine(ULM + "\n" + BONN + EOS)) as served,
        served.openai.responses.stream(model="scripted", input="?", tools=TOOLS) as stream,
    ):
        snapshots = {
            event.item_id: event.snapshot
            async for event in stream
            if event.type == "response.function_call_arguments.delta"
        }
        response: Any = await stream.get_final_response()
    arguments = {item.id: item.arguments for item in response.output}
    assert list(arguments.values()) == ['{"city": "Ulm"}', '{"city": "Bonn"}']
    assert snapshots == arguments


async def test_forced_function_call() -> None:
    rest = ' {"city": "Ulm"}}\n</tool_call>' + EOS
    scripted = ScriptedEngine(rest)
    choice: Any = {"type": "function", "name": "weather"}
    async with serving(scripted) as served:
        final = checked(await collected(await ask(served, tools=TOOLS, tool_choice=choice, stream=True)))
        assert (await ask(served, tools=TOOLS, tool_choice="none")).output[0].type == "message"
    [call] = final["output"]
    assert (call["type"], call["arguments"]) == ("function_call", '{"city": "Ulm"}')
    assert prompt(scripted, 0).endswith('<tool_call>\n{"name": "weather", "arguments":')
    assert final["tool_choice"] == choice


async def test_parallel_tool_calls_false_allows_one_call() -> None:
    async with serving(ScriptedEngine(f"{ULM}\n{NOW}{EOS}")) as served:
        response = await ask(served, tools=TOOLS, parallel_tool_calls=False)
    assert [item.type for item in response.output] == ["function_call"]
    assert response.parallel_tool_calls is False


async def test_invalid_call_fails_a_strict_response() -> None:
    wrong = '<tool_call>\n{"name": "weather", "arguments": {"town": 1}}\n</tool_call>' + EOS
    async with serving(ScriptedEngine(wrong)) as served:
        strict: Any = {"tools": TOOLS, "extra_body": {"strict_tool_calls": True}}
        with pytest.raises(openai.BadRequestError, match="is invalid") as caught:
            await ask(served, **strict)
        events = await collected(await ask(served, **strict, stream=True))
    final = events[-1]["response"]
    assert (events[-1]["type"], final["output"]) == ("response.failed", [])
    assert "is invalid" in final["error"]["message"]
    assert caught.value.code == final["error"]["code"] == "tool_use_failed"


@pytest.mark.parametrize(
    "written", ["<tool_call>\nweather(Ulm)", '<tool_call>{"name": "rain", "arguments": {}}']
)
async def test_unparsable_call_is_a_message(written: str) -> None:
    async with serving(ScriptedEngine(written + EOS)) as served:
        response = await ask(served, tools=TOOLS)
        final = checked(await collected(await ask(served, tools=TOOLS, stream=True)))
    assert response.output_text == written
    assert final["status"] == "completed"
    assert [item["type"] for item in final["output"]] == ["message"]


BROKEN = '<tool_call>\n{"name": "weather", "arguments": {"x": 12]}\n</tool_call>'


async def test_call_with_invalid_arguments_is_text_only() -> None:
    written = f"I look.\n{BROKEN} Sorry."
    async with serving(ScriptedEngine(written + EOS)) as served:
        whole = await ask(served, tools=TOOLS)
        final = checked(await collected(await ask(served, tools=TOOLS, stream=True)))
    for output in (whole.to_dict()["output"], final["output"]):
        [message] = output
        assert (message["type"], message["status"]) == ("message", "completed")
        assert message["content"][0]["text"] == written


async def test_calls_before_an_invalid_one_are_kept() -> None:
    async with serving(ScriptedEngine(f"{ULM}\n{BROKEN}{EOS}")) as served:
        final = checked(await collected(await ask(served, tools=TOOLS, stream=True)))
    call, message = final["output"]
    assert (call["type"], call["status"]) == ("function_call", "completed")
    assert message["content"][0]["text"].strip() == BROKEN


async def test_sdk_helper_reads_an_invalid_call_as_text() -> None:
    async with (
        serving(ScriptedEngine(BROKEN + EOS)) as served,
        served.openai.responses.stream(model="scripted", input="?", tools=TOOLS) as stream,
    ):
        response: Any = await stream.get_final_response()
    assert [item.type for item in response.output] == ["message"]


async def test_tools_and_items_of_other_types_are_ignored() -> None:
    tools: Any = [
        *TOOLS,
        {"type": "web_search"},
        {"type": "custom", "name": "patch", "format": {"type": "text"}},
    ]
    items: Any = [
        {"role": "user", "content": "Hi"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}},
        {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
    ]
    scripted = ScriptedEngine("Hi." + EOS)
    async with serving(scripted) as served:
        raw = await served.openai.responses.with_raw_response.create(
            model="scripted", input=items, tools=tools, text={"verbosity": "low"}, max_tool_calls=3
        )
    assert raw.headers["x-ih-grpo-ignored"] == "input[1], text.verbosity, tools[2], max_tool_calls"
    assert [tool["name"] for tool in raw.http_response.json()["tools"]] == ["weather", "now", "patch"]
    assert '"arguments": {"input": "*** Begin"}' in prompt(scripted)
    assert "tool: done" in prompt(scripted)


async def test_truncated_call_is_incomplete() -> None:
    async with serving(ScriptedEngine(ULM + EOS)) as served:
        final = checked(
            await collected(await ask(served, tools=TOOLS, stream=True, max_output_tokens=len(ULM) // 2))
        )
    assert (final["status"], final["output"][0]["status"]) == ("incomplete", "incomplete")
