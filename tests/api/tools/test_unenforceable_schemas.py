"""Schemas of functions that another validator could check: accepted unless they must be enforced."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.api.chat.request import ChatRequest
from service.api.messages.request import MessagesRequest
from service.api.responses.request import ResponseRequest

TURNS: Any = [{"role": "user", "content": "hi"}]
FOREIGN: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "string", "pattern": r"^(?P<x>\w)(?P=x)$"}}},
    {"$schema": "https://example.com/mine", "type": "object"},
]
CHAT_CHOICE: Any = {"type": "function", "function": {"name": "f"}}
PLAIN: Any = {"type": "object"}


def chat(schema: object, **fields: Any) -> ChatRequest:
    tools = [{"type": "function", "function": {"name": "g", "parameters": PLAIN}},
             {"type": "function", "function": {"name": "f", "parameters": schema}}]  # fmt: skip
    return ChatRequest.model_validate({"model": "m", "messages": TURNS, "tools": tools, **fields})


def response(schema: object, **fields: Any) -> ResponseRequest:
    tools = [{"type": "function", "name": "g"}, {"type": "function", "name": "f", "parameters": schema}]
    return ResponseRequest.model_validate({"model": "m", "input": "hi", "tools": tools, **fields})


def message(schema: object, **fields: Any) -> MessagesRequest:
    tools = [{"name": "g", "input_schema": PLAIN}, {"name": "f", "input_schema": schema}]
    body = {"model": "m", "messages": TURNS, "max_tokens": 9, "tools": tools, **fields}
    return MessagesRequest.model_validate(body)


@pytest.mark.parametrize("schema", FOREIGN)
def test_schema_of_another_dialect_is_accepted(schema: dict[str, Any]) -> None:
    tool = chat(schema).functions_offered[1]
    assert tool.function.parameters == schema
    assert tool.function.error_in({"a": "x"}) is None
    assert chat(schema, tool_choice={"type": "function", "function": {"name": "g"}}).forces_call
    assert response(schema, tool_choice={"type": "function", "name": "g"}).functions[1].name == "f"
    assert message(schema, tool_choice={"type": "tool", "name": "g"}).client_tools[1].input_schema == schema


@pytest.mark.parametrize("schema", FOREIGN)
@pytest.mark.parametrize(
    ("build", "fields", "place"),
    [
        (chat, {"strict_tool_calls": True}, ".tools[1].function.parameters"),
        (chat, {"tool_choice": "required"}, ".tools[1].function.parameters"),
        (chat, {"tool_choice": CHAT_CHOICE}, ".tools[1].function.parameters"),
        (response, {"strict_tool_calls": True}, ".tools[1].parameters"),
        (response, {"tool_choice": {"type": "function", "name": "f"}}, ".tools[1].parameters"),
        (message, {"tool_choice": {"type": "any"}}, ".tools[1].input_schema"),
        (message, {"tool_choice": {"type": "tool", "name": "f"}}, ".tools[1].input_schema"),
    ],
)
def test_schema_that_must_be_enforced_is_rejected(
    schema: dict[str, Any], build: Any, fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(ValidationError, match="not a usable JSON schema") as caught:
        build(schema, **fields)
    assert caught.value.errors()[0]["ctx"]["at"] == place


def test_error_has_the_place_in_the_schema() -> None:
    with pytest.raises(ValidationError) as caught:
        chat(FOREIGN[0], strict_tool_calls=True)
    assert '["properties"]["a"]["pattern"]' in str(caught.value)


def test_functions_that_code_calls_need_a_usable_schema() -> None:
    function = {"name": "f", "parameters": FOREIGN[0], "allowed_callers": ["programmatic"]}
    with pytest.raises(ValidationError, match="not a usable JSON schema"):
        chat(PLAIN, tools=[{"type": "function", "function": function}])
