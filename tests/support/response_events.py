"""Strict checks of a response's stream: the SDK's types, and consistency between events."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

_events: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_LAST = ("response.completed", "response.failed", "response.incomplete")
Event = dict[str, Any]


async def collected(stream: AsyncIterable[Any]) -> list[Event]:
    """Collect all events of a stream."""
    return [event.to_dict() async for event in stream]


def checked(events: list[Event]) -> dict[str, Any]:
    """Check the consistency of a complete stream and return its final response."""
    for event in events:
        if not event["type"].startswith("ih_grpo:"):
            _events.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] in _LAST
    assert not [event for event in events[:-1] if event["type"] in _LAST]
    items: dict[int, Event] = {}
    deltas: dict[tuple[int, str], str] = {}
    done: dict[int, Event] = {}
    for event in events:
        index, kind = event.get("output_index", -1), event["type"]
        if kind == "response.output_item.added":
            assert index == len(items)
            items[index] = event["item"]
        elif index >= 0:
            assert index in items, kind
            assert index not in done, kind
            if "item_id" in event:
                assert event["item_id"] == items[index]["id"], kind
        if kind.endswith(".delta"):
            key = (index, kind.removesuffix(".delta"))
            deltas[key] = deltas.get(key, "") + event["delta"]
        elif kind.endswith(("_text.done", "_code.done", "_arguments.done")):
            whole = event.get("text", event.get("code", event.get("arguments")))
            assert deltas.get((index, kind.removesuffix(".done")), "") == whole
        elif kind == "response.output_item.done":
            assert event["item"].get("status") != "in_progress"
            done[index] = event["item"]
    final: dict[str, Any] = events[-1]["response"]
    Response.model_validate(final)
    assert [done[index] for index in sorted(items)] == final["output"]
    assert {event["response"]["id"] for event in events if "response" in event} == {final["id"]}
    return final


def kinds(events: list[Event], *leave_out: str) -> list[str]:
    """Return the event names without ``response.``, except those in ``leave_out``."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for name in names if name not in leave_out]
