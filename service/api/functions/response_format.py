"""``response_format``: free text, any JSON object, or JSON of a schema."""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.api.functions.json_schemas import compile_schema
from service.api.validation import RequestModel, invalid


def _check_schema(schema: dict[str, object] | None) -> None:
    try:
        compile_schema(schema or {})
    except ValueError as error:
        raise invalid(f"'schema' is not a usable JSON schema: {error}", ".schema") from None


class TextFormat(RequestModel):
    type: Literal["text"]

    @property
    def schema_text(self) -> str | None:
        """JSON schema of the whole reply; None for free text."""
        return None


class JsonObjectFormat(RequestModel):
    type: Literal["json_object"]
    schema_: dict[str, object] | None = Field(default=None, alias="schema")
    """An extra of llama.cpp and others: the object's schema."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        _check_schema(self.schema_)
        return self

    @property
    def schema_text(self) -> str | None:
        return json.dumps(self.schema_ or {"type": "object"})


class JsonSchema(RequestModel):
    name: str = Field(default="response", max_length=64)
    description: str | None = None
    schema_: dict[str, object] = Field(alias="schema")
    strict: bool | None = None
    """Of no effect: the schema always binds."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        _check_schema(self.schema_)
        return self


class JsonSchemaFormat(RequestModel):
    type: Literal["json_schema"]
    json_schema: JsonSchema

    @property
    def schema_text(self) -> str | None:
        return json.dumps(self.json_schema.schema_)


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
