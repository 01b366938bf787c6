"""``response_format``: free text, any JSON object, or JSON of a schema."""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.api.functions.json_schemas import compile_schema
from service.api.strict import Strict, invalid


class TextFormat(Strict):
    type: Literal["text"]

    @property
    def schema_text(self) -> str | None:
        """JSON schema of the whole reply; None for free text."""
        return None


class JsonObjectFormat(Strict):
    type: Literal["json_object"]

    @property
    def schema_text(self) -> str | None:
        return '{"type": "object"}'


class JsonSchema(Strict):
    name: str = Field(max_length=64)
    description: str | None = None
    schema_: dict[str, object] = Field(alias="schema")
    strict: bool | None = None
    """Of no effect: the schema always binds."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            compile_schema(self.schema_)
        except ValueError as error:
            raise invalid(f"'schema' is no JSON schema that can be used: {error}") from None
        return self


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema

    @property
    def schema_text(self) -> str | None:
        return json.dumps(self.json_schema.schema_)


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
