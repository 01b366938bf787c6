from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from service.api.tools.definitions import ResponseFormat

FORM: TypeAdapter[Any] = TypeAdapter(ResponseFormat)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_schema_of_each_response_format() -> None:
    assert FORM.validate_python({"type": "text"}).schema_text is None
    assert json.loads(FORM.validate_python({"type": "json_object"}).schema_text) == {"type": "object"}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    assert json.loads(FORM.validate_python(asked).schema_text) == SCHEMA


@pytest.mark.parametrize(
    "asked",
    [
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://127.0.0.1:1/"}}},
    ],
)
def test_rejects_invalid_response_formats(asked: object) -> None:
    with pytest.raises(ValidationError):
        FORM.validate_python(asked)
