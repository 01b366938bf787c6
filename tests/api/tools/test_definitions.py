from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.api.tools.definitions import Function, Functions

CITY = {
    "$defs": {"Unit": {"enum": ["C", "F"]}},
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"$ref": "#/$defs/Unit"}},
    "required": ["city"],
    "additionalProperties": False,
}


def test_calls_are_checked_against_the_schema() -> None:
    functions = Functions([Function(name="weather", parameters=CITY), Function(name="now")])
    assert functions.check("weather", None) is None
    assert functions.check("weather", {"city": "Ulm", "unit": "C"}) is None
    assert functions.check("now", {}) is None
    for name, arguments, word in [
        ("weather", {}, "required"),
        ("weather", {"city": 1}, "string"),
        ("weather", {"city": "Ulm", "unit": "K"}, "unit"),
        ("weather", {"city": "Ulm", "x": 1}, "x"),
        ("now", {"x": 1}, "more than 0"),
    ]:
        error = functions.check(name, arguments)
        assert error is not None
        assert word in error
    assert "no function" in str(functions.check("other", None))


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "strng"},
        {"properties": 1},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"$ref": "file:///etc/passwd"},
    ],
)
def test_rejects_unusable_schemas_without_fetching(
    parameters: dict[str, object],
) -> None:
    with pytest.raises(ValidationError, match="'parameters' is not a usable JSON schema"):
        Function(name="f", parameters=parameters)


def test_patterns_run_in_linear_time() -> None:
    function = Function(
        name="f", parameters={"properties": {"a": {"type": "string", "pattern": "^(a|a)*\\1$"}}}
    )
    assert function.error_in({"a": "a" * 5000 + "b"}) is not None
