"""``text``: the form of the reply."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from service.api.functions.response_format import JsonObjectFormat, JsonSchema, TextFormat
from service.api.responses.tools import by_type
from service.api.validation import Ignored, RequestModel
from service.api.wire import Json


class SchemaFormat(JsonSchema):
    """JSON of a schema; unlike in chat completions, the schema stands beside the type."""

    type: Literal["json_schema"]


Format = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[SchemaFormat, Tag("<json_schema>")],
    Discriminator(by_type),
]


class TextOptions(RequestModel):
    format: Format = Field(default=TextFormat(type="text"))
    verbosity: Annotated[object, Ignored("medium")] = None

    def as_response_format(self) -> Json:
        """The same in chat completions' form."""
        if not isinstance(self.format, SchemaFormat):
            return self.format.model_dump(exclude_none=True, by_alias=True)
        schema = self.format.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
        return {"type": "json_schema", "json_schema": schema}

    def as_told(self) -> Json:
        """As the response object tells it."""
        return {"format": self.format.model_dump(exclude_none=True, by_alias=True)}
