"""The cases of the Open Responses compliance suite, by their names, judged by that specification's own types.

The suite is on no package registry, its types are (``openresponses-types``); the cases are in our own words.
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


async def post(text: str, body: dict[str, Any]) -> httpx.Response:
    async with serving(ScriptedEngine(text + EOS)) as served, httpx.AsyncClient() as client:
        return await client.post(f"{served.url}/v1/responses", json={"model": "scripted", **body})


async def answered(text: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = await post(text, body)
    assert reply.status_code == 200, reply.text
    spec.ResponseResource.model_validate_json(reply.text)
    response: dict[str, Any] = reply.json()
    assert response["output"]
    assert response["status"] == "completed"
    return response


async def streamed(text: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    reply = await post(text, {**body, "stream": True})
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
    response = await answered(CALL, {"input": [USER], "tools": TOOLS})
    assert [item["type"] for item in response["output"]] == ["function_call"]


async def test_tool_calling_streaming() -> None:
    events = await streamed(CALL, {"input": [USER], "tools": TOOLS})
    names = [event["type"] for event in events]
    assert "response.function_call_arguments.delta" in names
    assert "response.function_call_arguments.done" in names
    items = [event["item"]["type"] for event in events if "output_item" in event["type"]]
    assert items == ["function_call", "function_call"]


async def respond_twice(first: str, second: str, body: dict[str, Any], go_on: Any) -> list[dict[str, Any]]:
    """Two responses, the other one to ``go_on(the first one)``."""
    async with (
        serving(ScriptedEngine(first + EOS, second + EOS)) as served,
        httpx.AsyncClient(base_url=served.url) as client,
    ):
        response: list[dict[str, Any]] = []
        for make in (lambda: body, lambda: {**go_on(response[0]), "previous_response_id": response[0]["id"]}):
            reply = await client.post("/v1/responses", json={"model": "scripted", **make()})
            spec.ResponseResource.model_validate_json(reply.text)
            response.append(reply.json())
            assert response[-1]["status"] == "completed"
    return response


async def test_function_call_roundtrip() -> None:
    written = '{"location": "Ulm"}}\n</tool_call>'  # the call is begun for the model
    choice = {"type": "function", "name": "get_weather"}

    def answer(first: dict[str, Any]) -> dict[str, Any]:
        [call] = first["output"]
        assert call["type"] == "function_call"
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Cloudy."}
        return {"input": [output]}

    body = {"input": "Weather?", "tools": TOOLS, "tool_choice": choice}
    _, second = await respond_twice(written, "Cloudy, it says.", body, answer)
    assert second["output"][0]["content"][0]["text"] == "Cloudy, it says."


async def test_previous_response_id() -> None:
    again = {"input": "Which word?"}
    _, second = await respond_twice("OK", "papaya", {"input": "Remember: papaya."}, lambda first: again)
    assert second["output"][0]["content"][0]["text"] == "papaya"


@pytest.mark.parametrize("part", [
    {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
    {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
])  # fmt: skip
async def test_rejects_image_and_file_input(part: dict[str, Any]) -> None:
    """The suite expects an answer, but the model reads text only."""
    content = [{"type": "input_text", "text": "What is this?"}, part]
    reply = await post("", {"input": [{"type": "message", "role": "user", "content": content}]})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "input[0].content[1]")
    assert part["type"] in error["message"]


async def test_multi_turn() -> None:
    turns = [
        {"type": "message", "role": "user", "content": "My name is Alice."},
        {"type": "message", "role": "assistant", "content": "Hello Alice!"},
        {"type": "message", "role": "user", "content": "What is my name?"},
    ]
    await answered("Alice.", {"input": turns})


@pytest.mark.parametrize("effort", ["none", "medium"])
async def test_reasoning(effort: str) -> None:
    text = "<think>\nHm.\n</think>\n\nYes." if effort == "medium" else "Yes."
    response = await answered(text, {"input": [USER], "reasoning": {"effort": effort}})
    assert response["reasoning"]["effort"] == effort
