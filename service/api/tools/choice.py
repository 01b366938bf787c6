"""``tool_choice``: make the model call a function by writing the beginning of the call for it.

The prompt ends with the beginning of a call, which works with every engine. An engine that supports JSON
schemas also enforces the schema of the call; otherwise the call is checked once it is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import jsonschema_rs

from service.api.tools.definitions import FunctionTool, NamedChoice, ToolChoice
from service.deferral.call_span import CALL_OPEN


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """Beginning of a call: the model continues ``prefix``, and its text must match ``schema`` unless None."""

    prefix: str
    schema: str | None


def force_call(choice: ToolChoice | None, tools: Sequence[FunctionTool]) -> ForcedCall:
    """Return the forced call of one of ``tools``.

    Args:
        choice: a function by name; anything else means any of them.
        tools: functions that the reply may call; at least one.
    """
    if isinstance(choice, NamedChoice):
        [tool] = [tool for tool in tools if tool.function.name == choice.function.name]
    elif len(tools) > 1:
        return ForcedCall(f"{CALL_OPEN}\n", _schema_of_any(tools))
    else:
        [tool] = tools
    # No space at the end: in the model's vocabulary it belongs to the next word.
    prefix = f'{CALL_OPEN}\n{{"name": {json.dumps(tool.function.name)}, "arguments":'
    return ForcedCall(prefix, json.dumps(_object_schema(tool.function.schema_of_arguments)))


def _object_schema(schema: dict[str, object]) -> dict[str, object]:
    """Return ``schema`` for objects only: arguments are an object, even if the schema allows other values."""
    return schema if "type" in schema else {**schema, "type": "object"}


def _schema_of_any(tools: Sequence[FunctionTool]) -> str | None:
    """Return a schema for a call of any of ``tools``; None if one of theirs can't be embedded."""
    calls: list[dict[str, object]] = []
    definitions: dict[str, object] = {}
    for index, tool in enumerate(tools):
        schema = _object_schema(tool.function.schema_of_arguments)
        arguments: object = jsonschema_rs.dereference(schema, offline=True)
        if '"$ref"' in json.dumps(arguments):  # a recursive schema
            if any(f'"{keyword}"' in json.dumps(schema) for keyword in _BASES):
                return None
            definitions[f"f{index}"] = _moved(schema, f"#/$defs/f{index}")
            arguments = {"$ref": f"#/$defs/f{index}"}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return json.dumps({"anyOf": calls, **({"$defs": definitions} if definitions else {})})


_BASES: Final = ("$id", "$anchor", "$dynamicRef", "$recursiveRef")
"""Keywords that change the meaning of references."""


def _moved(schema: object, to: str) -> object:
    """Return ``schema`` with its references adapted to its new place, the JSON pointer ``to``."""
    if isinstance(schema, list):
        return [_moved(part, to) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(part, to) for name, part in schema.items()}
    if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#"):
        moved["$ref"] = to + reference.removeprefix("#")
    return moved
