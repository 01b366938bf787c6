from __future__ import annotations

import json

import pytest

from service.api.chat.request import ChatRequest
from service.api.tools.choice import force_call
from service.api.tools.definitions import Function, FunctionTool, NamedChoice

NODE = {
    "$defs": {"N": {"type": "object", "properties": {"next": {"$ref": "#/$defs/N"}}}},
    "$ref": "#/$defs/N",
}
CITY = {
    "$defs": {"Unit": {"enum": ["C", "F"]}},
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"$ref": "#/$defs/Unit"}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str, parameters: dict[str, object] | None = None) -> FunctionTool:
    return FunctionTool(type="function", function=Function(name=name, parameters=parameters))


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_no_call_is_forced_by_default(choice: str | None) -> None:
    request = ChatRequest.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "?"}],
            "tools": [tool("f").model_dump()],
            "tool_choice": choice,
        }
    )
    assert not request.forces_call


def test_prefix_begins_the_call_of_a_named_function() -> None:
    named = NamedChoice.model_validate({"type": "function", "function": {"name": "g"}})
    for forced in (
        force_call(named, [tool("f"), tool("g", CITY)]),
        force_call("required", [tool("g", CITY)]),
    ):
        assert forced.prefix == '<tool_call>\n{"name": "g", "arguments":'
        assert json.loads(forced.schema or "") == CITY


def test_schema_of_any_function_has_references_resolved() -> None:
    forced = force_call("required", [tool("f", CITY), tool("g")])
    assert forced.prefix == "<tool_call>\n"
    schema = json.loads(forced.schema or "")
    check = Function(name="x", parameters=schema)
    assert check.error_in({"name": "f", "arguments": {"city": "Ulm", "unit": "F"}}) is None
    assert check.error_in({"name": "f", "arguments": {"city": "Ulm", "unit": "K"}}) is not None
    assert check.error_in({"name": "h", "arguments": {}}) is not None


TREE = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}


def test_recursive_schemas_are_enforced() -> None:
    forced = force_call("required", [tool("f", NODE), tool("g", TREE), tool("h", CITY)])
    check = Function(name="x", parameters=json.loads(forced.schema or ""))
    for name, arguments, valid in (
        ("f", {"next": {"next": {}}}, True),
        ("f", {"next": {"next": 5}}, False),
        ("g", {"kids": [{"kids": []}]}, True),
        ("g", {"kids": [{"kids": [1]}]}, False),
        ("h", {"city": "Ulm"}, True),
        ("h", {"next": {}}, False),
    ):
        assert (check.error_in({"name": name, "arguments": arguments}) is None) is valid


def test_recursive_schema_with_a_base_is_not_enforced() -> None:
    based = {**NODE, "$id": "https://example.org/node"}
    assert force_call("required", [tool("f", based), tool("g")]).schema is None


@pytest.mark.parametrize("parameters", [{}, {"properties": {"a": {"type": "integer"}}}, NODE])
def test_arguments_are_always_an_object(parameters: dict[str, object]) -> None:
    for tools in ([tool("f", parameters)], [tool("f", parameters), tool("g", parameters)]):
        forced = force_call("required", tools)
        check = Function(name="x", parameters=json.loads(forced.schema or ""))
        call = {"name": "f", "arguments": 5}
        assert check.error_in(call if len(tools) > 1 else call["arguments"]) is not None  # type: ignore[arg-type]
