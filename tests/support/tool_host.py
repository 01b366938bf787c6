"""A host of a few stateful tools, which records the calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from service.tools.base import ToolError, ToolSpec


def _object(required: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
SPECS = (
    ToolSpec("add", "Add two numbers.", _object(["a"], a=NUMBER, b={**NUMBER, "default": 1}), NUMBER, True),
    ToolSpec("notes", "Return all notes.", _object(), {"type": "array", "items": TEXT}, True),
    ToolSpec("note", "Add a note.", _object(["text"], text=TEXT), NUMBER),
    ToolSpec("slow", "Wait.", _object(["seconds"], seconds={"type": "number"}), None, True),
    ToolSpec("fail", "Fail.", _object(["reason"], reason=TEXT), None, True),
    ToolSpec("echo", "Return a value.", _object(["value"], value={}), {}, True),
)


class RecordingHost:
    """Tools that add numbers, keep notes, wait, fail and return a value."""

    specs: Sequence[ToolSpec] = SPECS

    def __init__(self) -> None:
        self.notes: list[str] = []
        """The state that ``note``, the tool with a side effect, changes."""
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.ids: list[str] = []
        self.cancelled = 0

    async def call(self, name: str, arguments: dict[str, Any], call_id: str) -> object:
        self.calls.append((name, arguments))
        self.ids.append(call_id)
        match name:
            case "add":
                return arguments["a"] + arguments.get("b", 1)
            case "notes":
                return self.notes
            case "note":
                self.notes.append(arguments["text"])
                if arguments["text"] == "refused":
                    raise ToolError("the note was kept, but it is bad")
                return len(self.notes)
            case "slow":
                try:
                    await asyncio.sleep(arguments["seconds"])
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
                return "done"
            case "fail":
                raise ToolError(arguments["reason"])
        return arguments["value"]
