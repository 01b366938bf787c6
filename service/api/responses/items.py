"""Input items, checked. Those that a response gave out are taken back as they are."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from service.api.responses.tools import by_type
from service.api.strict import Strict, invalid, only, unsupported
from service.api.wire import Json

PREFIXES: Final = {
    "message": "msg",
    "reasoning": "rs",
    "code_interpreter_call": "ci",
    "function_call": "fc",
    "function_call_output": "fco",
    "item_reference": "ref",
}
"""What the id of an item begins with, by its type."""

_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})


def _join_parts(value: object) -> object:
    """Text parts as one string; anything but text is refused."""
    if not isinstance(value, list):
        return value
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS:
            raise unsupported(
                f"parts of type {kind!r} can't be read: this model reads text only ('input_text')"
            )
        if not isinstance(part.get("text"), str):
            raise invalid("a text part needs its 'text'")
    return "".join(part["text"] for part in value)


Content = Annotated[str, BeforeValidator(_join_parts, json_schema_input_type=str | list[dict[str, object]])]


class Item(Strict):
    """What all items share. Fields that are null count as left out, as SDKs send them back."""

    id: str | None = Field(default=None, max_length=80)
    status: Literal["in_progress", "completed", "incomplete", "interpreting", "failed"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: object) -> object:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data

    def as_listed(self, item_id: str) -> Json:
        """The item as ``input_items`` lists it, under an id of the response that it goes into."""
        return {**self.model_dump(exclude_none=True), "id": item_id, "status": self.status or "completed"}


class Message(Item):
    """One message. Pieces of content are joined with nothing between them."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    phase: Annotated[object, only("commentary", "final_answer")] = None

    def as_listed(self, item_id: str) -> Json:
        part: Json = {"type": "input_text", "text": self.content}
        if self.role == "assistant":
            part = {"type": "output_text", "text": self.content, "annotations": [], "logprobs": []}
        return {**super().as_listed(item_id), "content": [part]}


class ReasoningText(Strict):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class Reasoning(Item):
    """What the model thought in an earlier response."""

    type: Literal["reasoning"]
    summary: list[dict[str, object]] = Field(default_factory=list)
    content: list[ReasoningText] = Field(default_factory=list)
    encrypted_content: Annotated[object, only("")] = None


class Logs(Strict):
    type: Literal["logs"]
    logs: str


class CodeInterpreterCall(Item):
    """Code that ran in an earlier response."""

    type: Literal["code_interpreter_call"]
    code: str = ""
    container_id: str = ""
    outputs: list[Logs] | None = None
    """Left out where the response was not asked to include them; then they are looked up."""


class FunctionCall(Item):
    """A call of one of the client's functions."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    parsed_arguments: Annotated[object, only()] = None


class FunctionCallOutput(Item):
    """What the client's function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ItemReference(Item):
    """A stored item, by its id."""

    type: Literal["item_reference"] = "item_reference"

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if self.id is None:
            raise invalid("an item reference needs the item's 'id'")
        return self


def _tag(value: object) -> str | None:
    if isinstance(value, dict) and value.get("type") is None:
        return "<message>" if "role" in value else "<item_reference>"
    return by_type(value)


InputItem = Annotated[
    Annotated[Message, Tag("<message>")]
    | Annotated[Reasoning, Tag("<reasoning>")]
    | Annotated[CodeInterpreterCall, Tag("<code_interpreter_call>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    Discriminator(
        _tag,
        custom_error_type="unsupported_parameter",
        custom_error_message="this server can't read items of this type",
    ),
]


def _as_list(value: object) -> object:
    return [{"type": "message", "role": "user", "content": value}] if isinstance(value, str) else value


Input = Annotated[
    list[InputItem],
    Field(min_length=1, max_length=10_000),
    BeforeValidator(_as_list, json_schema_input_type=str | list[InputItem]),
]
