from __future__ import annotations

import json

from service.api.tools.choice import forced_call
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


def test_the_model_is_free_unless_a_call_is_asked_for() -> None:
    assert forced_call(None, [tool("f")]) is None
    assert forced_call("auto", [tool("f")]) is None
    assert forced_call("none", []) is None


def test_a_named_function_is_begun_for_the_model() -> None:
    named = NamedChoice.model_validate({"type": "function", "function": {"name": "g"}})
    for forced in (
        forced_call(named, [tool("f"), tool("g", CITY)]),
        forced_call("required", [tool("g", CITY)]),
    ):
        assert forced is not None
        assert forced.prefix == '<tool_call>\n{"name": "g", "arguments":'
        assert json.loads(forced.schema or "") == CITY


def test_any_function_is_one_schema_with_references_resolved() -> None:
    forced = forced_call("required", [tool("f", CITY), tool("g")])
    assert forced is not None
    assert forced.prefix == "<tool_call>\n"
    schema = json.loads(forced.schema or "")
    check = Function(name="x", parameters=schema)
    assert check.complaint({"name": "f", "arguments": {"city": "Ulm", "unit": "F"}}) is None
    assert check.complaint({"name": "f", "arguments": {"city": "Ulm", "unit": "K"}}) is not None
    assert check.complaint({"name": "h", "arguments": {}}) is not None


def test_a_schema_that_refers_to_itself_is_left_to_the_check() -> None:
    forced = forced_call("required", [tool("f", NODE), tool("g")])
    assert forced is not None
    assert forced.schema is None
