"""``tool_choice``: make the model call a function, by writing the beginning of the call for it.

The prompt ends with the words that begin a call, so that any engine can be made to call. An engine that can
hold the text to a JSON schema is asked to; elsewhere the call is checked when it is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import jsonschema_rs

from service.api.tools.definitions import FunctionTool, NamedChoice, ToolChoice
from service.api.tools.parser import OPEN


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """``prefix`` is written for the model; what it writes on must match ``schema``, where that is known."""

    prefix: str
    schema: str | None


def forced_call(choice: ToolChoice | None, tools: Sequence[FunctionTool]) -> ForcedCall | None:
    """How ``choice`` is enforced; None where the model is free."""
    if isinstance(choice, NamedChoice):
        [tool] = [tool for tool in tools if tool.function.name == choice.function.name]
    elif choice == "required":
        if len(tools) > 1:
            return ForcedCall(f"{OPEN}\n", _schema_of_any(tools))
        [tool] = tools
    else:
        return None
    # No blank at the end: in the model's vocabulary it belongs to the word that follows.
    prefix = f'{OPEN}\n{{"name": {json.dumps(tool.function.name)}, "arguments":'
    return ForcedCall(prefix, json.dumps(tool.function.schema_of_arguments))


def _schema_of_any(tools: Sequence[FunctionTool]) -> str | None:
    """A call of one of ``tools``; None where a schema refers to itself and can't be put into another."""
    calls = []
    for tool in tools:
        arguments = jsonschema_rs.dereference(tool.function.schema_of_arguments, offline=True)
        if '"$ref"' in json.dumps(arguments):
            return None
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return json.dumps({"anyOf": calls})
