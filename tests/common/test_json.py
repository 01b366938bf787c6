from __future__ import annotations

import pytest

from service.common.json import compile_schema, first_error, json_time


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


def test_rejects_schemas_nested_too_deeply() -> None:
    schema: dict[str, object] = {"type": "object"}
    for _ in range(3000):
        schema = {"properties": {"a": schema}}
    with pytest.raises(ValueError, match="Recursion limit"):
        compile_schema(schema)
