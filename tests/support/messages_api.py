"""A scripted server of the Messages API, its official client, and strict checks of its streams."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from service.api.messages.schemas import AnthropicMessageObject
from tests.support.responses_api import sandbox
from tests.support.scripted import ScriptedEngine, ScriptedSandbox
from tests.support.serving import Served, make_app, serve

CODE_TOOL: Any = [{"type": "code_execution_20250522", "name": "code_execution"}]
WEATHER: Any = {
    "name": "weather",
    "description": "Weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
QUESTION: Any = [{"role": "user", "content": "?"}]
_events: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
Event = dict[str, Any]


@asynccontextmanager
async def serving(
    engine: ScriptedEngine, box: ScriptedSandbox | None = None, key: str = "none", **options: Any
) -> AsyncGenerator[tuple[Served, anthropic.AsyncAnthropic], None]:
    """Serve ``engine`` and yield the server with Anthropic's client for it, which does not retry."""
    async with (
        serve(make_app(engine, box or sandbox(), **options), key) as served,
        anthropic.DefaultAsyncHttpxClient(verify=False) as plain,
    ):
        yield (
            served,
            anthropic.AsyncAnthropic(base_url=served.url, api_key=key, max_retries=0, http_client=plain),
        )


async def ask(client: anthropic.AsyncAnthropic, messages: Any = QUESTION, **options: Any) -> Message:
    """Return the reply to ``messages``, after a check of its form."""
    defaults: dict[str, Any] = {"model": "scripted", "max_tokens": 1000, "messages": messages}
    raw = await client.messages.with_raw_response.create(**{**defaults, **options})
    AnthropicMessageObject.model_validate_json(await raw.text())
    return await raw.parse()


async def streamed(client: anthropic.AsyncAnthropic, messages: Any = QUESTION, **options: Any) -> list[Event]:
    """Return the events of the streamed reply as they were sent, pings included."""
    defaults: dict[str, Any] = {"model": "scripted", "max_tokens": 1000, "messages": messages, "stream": True}
    body = {**defaults, **options}
    text = await client.post("/v1/messages", body=body, cast_to=str)
    events = []
    for part in text.split("\n\n"):
        if part:
            name, data = part.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    return events


def checked(events: list[Event]) -> dict[str, Any]:
    """Check the order and the form of a complete stream and return the message that it adds up to."""
    events = [event for event in events if event["type"] != "ping"]
    for event in events:
        _events.validate_python(event)
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    assert events[0]["type"] == "message_start"
    message = events[0]["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    content: list[Any] = []
    written: str | None = None
    is_open = False
    for event in events[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert (event["index"], is_open) == (len(content), False)
                content.append(dict(event["content_block"]))
                is_open, written = True, None
            case "content_block_delta":
                assert (event["index"], is_open) == (len(content) - 1, True)
                match event["delta"]:
                    case {"type": "input_json_delta", "partial_json": text}:
                        written = (written or "") + text
                    case {"type": "signature_delta", "signature": text}:
                        content[-1]["signature"] += text
                    case {"type": kind} as delta:
                        name = kind.removesuffix("_delta")
                        assert content[-1]["type"] == name
                        assert delta[name] != ""
                        content[-1][name] += delta[name]
            case "content_block_stop":
                assert (event["index"], is_open) == (len(content) - 1, True)
                is_open = False
                if written is not None:
                    content[-1]["input"] = json.loads(written)
            case other:
                raise AssertionError(other)
    assert not is_open
    usage = {**message["usage"], **events[-2]["usage"]}
    whole = {**message, "content": content, **events[-2]["delta"], "usage": usage}
    AnthropicMessageObject.model_validate(whole)
    return whole


def kinds(events: list[Event], *leave_out: str) -> list[str]:
    """Return the event types, those of blocks with the type of the block or delta."""
    names = []
    for event in events:
        part = event.get("content_block") or event.get("delta", {})
        name = event["type"].removeprefix("content_block_")
        names.append(f"{name} {part['type']}" if "type" in part else name)
    return [name for name in names if name not in leave_out]
