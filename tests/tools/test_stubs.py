from __future__ import annotations

import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tools.base import ToolSpec
from service.tools.stubs import MAX_DOC_CHARS, annotation, identifier, listing, stub


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "str"),
        ({"type": "array", "items": {"type": "integer"}}, "list[int]"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "dict[str, float]"),
        ({"type": ["string", "null"]}, "str | None"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "int | None"),
        ({"enum": ["a", "b", 1]}, "Literal['a', 'b', 1]"),
        ({"const": "x"}, "Literal['x']"),
        ({"enum": [[1]]}, "object"),
        ({"$ref": "#/$defs/D"}, "bool"),
        ({"$ref": "#/$defs/Loop"}, "object"),
        ({"$ref": "https://example.com/schema"}, "object"),
        ({}, "object"),
        (True, "object"),
        ("nonsense", "object"),
    ],
)
def test_types_of_schemas(schema: object, expected: str) -> None:
    root = {"$defs": {"D": {"type": "boolean"}, "Loop": {"$ref": "#/$defs/Loop"}}}
    assert annotation(schema, root) == expected


def test_a_recursive_type_ends() -> None:
    root = {"type": "array", "items": {"$ref": "#"}}
    assert annotation(root, root) == "list[list[list[list[list]]]]"


@given(st.text(max_size=20), st.sets(st.sampled_from(["a", "a_2", "search"])))
def test_identifiers_are_valid_and_free(name: str, taken: set[str]) -> None:
    result = identifier(name, taken)
    assert result.isidentifier()
    assert not keyword.iskeyword(result)
    assert result not in taken


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("search", "search"),
        ("get-weather", "get_weather"),
        ("3d", "tool_3d"),
        ("class", "class_"),
        ("gather", "gather_"),
        ("__import__", "tool_import__"),
        ("", "_"),
    ],
)
def test_identifiers_resemble_the_name(name: str, expected: str) -> None:
    assert identifier(name) == expected


def test_required_parameters_come_first() -> None:
    schema = {
        "type": "object",
        "properties": {
            "limit": {"type": "integer", "default": 5},
            "query": {"type": "string", "description": "What to\n search."},
            "sort": {"type": "string"},
            "near": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["query"],
    }
    found = stub(ToolSpec("search", "Search it.", schema))
    shown = [(p["name"], p["required"], p["default"], p["omit_none"]) for p in found["parameters"]]
    assert shown == [
        ("query", True, None, False),
        ("limit", False, 5, True),
        ("sort", False, None, True),
        ("near", False, None, False),
    ]
    assert found["doc"] == "Search it.\nquery: What to search."
    assert (found["more"], found["returns"]) == (False, "str")


def test_other_names_are_keywords() -> None:
    schema = {"type": "object", "properties": {"from": {"type": "string"}, "x-y": {"type": "integer"}}}
    spec = ToolSpec("send", "", schema)
    assert stub(spec)["more"]
    assert "def send(**more) -> str:" in listing([spec])
    assert '"from": str' in listing([spec])


def test_the_listing_is_python() -> None:
    spec = ToolSpec(
        "find",
        'Find """it""".\nThen stop.' + "x" * 2 * MAX_DOC_CHARS,
        {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
        {"type": "array", "items": {"type": "object"}},
    )
    text = listing([spec])
    assert len(text) < 2 * MAX_DOC_CHARS
    _, _, code = text.partition("\n\n")
    namespace: dict[str, object] = {}
    exec(code, namespace)
    find = namespace["find"]
    assert callable(find)
    assert str(find.__doc__).startswith("Find '''it'''.\n    Then stop.")
    assert find.__annotations__ == {"q": "str", "return": "list[dict]"}
