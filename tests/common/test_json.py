from __future__ import annotations

import re

import pytest

from service.common.json import SchemaError, compile_schema, first_error, json_time


def test_times_are_in_whole_seconds_of_utc() -> None:
    assert json_time(1_700_000_000.9) == "2023-11-14T22:13:20Z"


def test_first_error_has_its_path() -> None:
    validator = compile_schema({"properties": {"a": {"items": {"type": "integer"}}}})
    assert first_error(validator, {"a": [1, 2]}) is None
    assert first_error(validator, {"a": [1, "x"]}) == '"x" is not of type "integer" at ["a"][1]'
    assert first_error(compile_schema({"type": "object"}), 5) == '5 is not of type "object"'
    assert first_error(compile_schema({}), "\ud800") == "a lone surrogate is not valid Unicode"


@pytest.mark.parametrize("schema", [{"type": 1}, {"$ref": "#/nowhere"}, {"$ref": "file:///etc/passwd"}])
def test_rejects_invalid_and_external_schemas(schema: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (the words are the library's)
        compile_schema(schema)


@pytest.mark.parametrize(
    ("schema", "place", "is_foreign"),
    [
        (
            {"properties": {"a": {"pattern": "(?P<x>a)(?P=x)"}}},
            '"regex" at ["properties"]["a"]["pattern"]',
            True,
        ),
        ({"$schema": "https://example.com/mine", "type": "object"}, "Unknown meta-schema", True),
        ({"properties": {"a": {"type": "strng"}}}, '["properties"]["a"]["type"]', False),
        ({"$ref": "file:///etc/passwd"}, "Retrieval is disabled", False),
    ],
)
def test_errors_of_schemas_have_a_place_and_a_kind(
    schema: dict[str, object], place: str, is_foreign: bool
) -> None:
    with pytest.raises(SchemaError, match=re.escape(place)) as caught:
        compile_schema(schema)
    assert caught.value.is_foreign is is_foreign


def test_rejects_schemas_nested_too_deeply() -> None:
    schema: dict[str, object] = {"type": "object"}
    for _ in range(3000):
        schema = {"properties": {"a": schema}}
    with pytest.raises(SchemaError, match="Recursion limit"):
        compile_schema(schema)
