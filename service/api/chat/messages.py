"""The messages of a chat request, checked, and as the chat template takes them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from service.api.functions.json_span import loads
from service.api.strict import Strict, invalid, only, unsupported


def _join_parts(value: object) -> object:
    """Text parts as one string; anything else stays what it is and is judged by the field's type."""
    if not isinstance(value, list):
        return value
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise unsupported("content is a string, or parts of type 'text' with their text")
    return "".join(part["text"] for part in value)


class TextPart(Strict):
    """A piece of content. Pieces are joined with nothing between them."""

    type: Literal["text"]
    text: str


Content = Annotated[str, BeforeValidator(_join_parts, json_schema_input_type=str | list[TextPart])]


class CalledFunction(Strict):
    """A call that the model made in an earlier reply."""

    name: str
    arguments: str
    """A JSON object, as text."""
    parsed_arguments: object = None
    """What the official SDK makes of them; it sends it back too. Left out, as ``parsed`` is."""

    @model_validator(mode="after")
    def _is_object(self) -> Self:
        try:
            whole = isinstance(loads(self.arguments), dict)
        except ValueError:
            whole = False
        if not whole:
            raise invalid("'arguments' is a JSON object, as text")
        return self


class ToolCall(Strict):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None
    """Of streamed calls, sent back as they came; of no meaning here."""


class Message(Strict):
    """One turn. What a reply has beside its content is accepted when it is sent back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The same as ``reasoning``, by its other name. The chat template decides whether it is shown again."""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    executed_tools: list[dict[str, object]] | None = None
    """Left out of the prompt: the content tells of them."""
    final_answer: str | None = None
    """Left out of the prompt: the content holds it."""
    parsed: object = None
    refusal: Annotated[object, only()] = None
    name: Annotated[object, only()] = None
    audio: Annotated[object, only()] = None
    annotations: Annotated[object, only([])] = None
    function_call: Annotated[object, only()] = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise invalid("only an assistant's message may lack content")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise invalid("'tool_call_id' belongs to messages of role 'tool', and each of them needs one")
        if self.role != "assistant" and (self.tool_calls or self.reasoning or self.reasoning_content):
            raise invalid("only an assistant's message has 'tool_calls' or 'reasoning'")
        return self

    def as_turn(self) -> dict[str, object]:
        """The turn as chat templates take it."""
        turn: dict[str, object] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or "",
        }
        if thought := self.reasoning or self.reasoning_content:
            turn["reasoning_content"] = thought
        if self.tool_calls:
            turn["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": loads(call.function.arguments)},
                }
                for call in self.tool_calls
            ]
        return turn


def check_tool_answers(messages: list[Message]) -> list[Message]:
    """Each message of role ``tool`` answers a call that stands before it."""
    called: set[str] = set()
    for message in messages:
        called |= {call.id for call in message.tool_calls or ()}
        if message.tool_call_id is not None and message.tool_call_id not in called:
            raise invalid(f"no call before it has the id {message.tool_call_id!r} ('tool_call_id')")
    return messages


Messages = Annotated[list[Message], Field(min_length=1), AfterValidator(check_tool_answers)]
