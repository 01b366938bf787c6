"""The cases of the Open Responses compliance suite, by their names, judged by that specification's own types.

The suite itself is on no package registry; its types are (``openresponses-types``).
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import openresponses_types as spec
import pytest

from tests.support.responses_api import serving
from tests.support.scripted import EOS, ScriptedEngine

TOOLS = [
    {
        "type": "function",
        "name": "get_weather",
        "description": "Get the current weather for a location",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
        },
    }
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Ulm"}}\n</tool_call>'
USER = {"type": "message", "role": "user", "content": "Say hello."}
EVENTS = {
    "response.created": "ResponseCreatedStreamingEvent",
    "response.in_progress": "ResponseInProgressStreamingEvent",
    "response.completed": "ResponseCompletedStreamingEvent",
    "response.output_item.added": "ResponseOutputItemAddedStreamingEvent",
    "response.output_item.done": "ResponseOutputItemDoneStreamingEvent",
    "response.content_part.added": "ResponseContentPartAddedStreamingEvent",
    "response.content_part.done": "ResponseContentPartDoneStreamingEvent",
    "response.output_text.delta": "ResponseOutputTextDeltaStreamingEvent",
    "response.output_text.done": "ResponseOutputTextDoneStreamingEvent",
    "response.function_call_arguments.delta": "ResponseFunctionCallArgumentsDeltaStreamingEvent",
    "response.function_call_arguments.done": "ResponseFunctionCallArgumentsDoneStreamingEvent",
}


async def post(said: str, body: dict[str, Any]) -> httpx.Response:
    async with serving(ScriptedEngine(said + EOS)) as served, httpx.AsyncClient() as client:
        return await client.post(f"{served.url}/v1/responses", json={"model": "scripted", **body})


async def answered(said: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = await post(said, body)
    assert reply.status_code == 200, reply.text
    spec.ResponseResource.model_validate_json(reply.text)
    told: dict[str, Any] = reply.json()
    assert told["output"]
    assert told["status"] == "completed"
    return told


async def streamed(said: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    reply = await post(said, {**body, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *parts, done, _ = reply.text.split("\n\n")
    assert done == "data: [DONE]"
    events = []
    for part in parts:
        name, data = (line.partition(": ")[2] for line in part.split("\n"))
        event = json.loads(data)
        assert event["type"] == name
        getattr(spec, EVENTS[name]).model_validate(event)
        events.append(event)
    spec.ResponseResource.model_validate(events[-1]["response"])
    return events


async def test_basic_response() -> None:
    await answered("Hello there, you.", {"input": [USER]})


async def test_streaming_response() -> None:
    events = await streamed("1 2 3 4 5", {"input": [USER]})
    assert events[-1]["response"]["status"] == "completed"


async def test_system_prompt() -> None:
    system = {"type": "message", "role": "system", "content": "You are a pirate."}
    await answered("Arr.", {"input": [system, USER]})


async def test_tool_calling() -> None:
    told = await answered(CALL, {"input": [USER], "tools": TOOLS})
    assert [item["type"] for item in told["output"]] == ["function_call"]


async def test_tool_calling_streaming() -> None:
    events = await streamed(CALL, {"input": [USER], "tools": TOOLS})
    names = [event["type"] for event in events]
    assert "response.function_call_arguments.delta" in names
    assert "response.function_call_arguments.done" in names
    items = [event["item"]["type"] for event in events if "output_item" in event["type"]]
    assert items == ["function_call", "function_call"]


async def test_image_input_is_refused_by_name() -> None:
    """The suite wants an answer; a model that sees nothing can only say so."""
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    content = [{"type": "input_text", "text": "What is this?"}, image]
    reply = await post("", {"input": [{"type": "message", "role": "user", "content": content}]})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "input[0].content")
    assert "input_image" in error["message"]


async def test_multi_turn() -> None:
    turns = [
        {"type": "message", "role": "user", "content": "My name is Alice."},
        {"type": "message", "role": "assistant", "content": "Hello Alice!"},
        {"type": "message", "role": "user", "content": "What is my name?"},
    ]
    await answered("Alice.", {"input": turns})


@pytest.mark.parametrize("effort", ["none", "medium"])
async def test_reasoning(effort: str) -> None:
    said = "<think>\nHm.\n</think>\n\nYes." if effort == "medium" else "Yes."
    told = await answered(said, {"input": [USER], "reasoning": {"effort": effort}})
    assert told["reasoning"]["effort"] == effort
