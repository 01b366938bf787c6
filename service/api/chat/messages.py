"""The messages of a chat request, checked, and as the chat template takes them."""

from __future__ import annotations

import json
import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from service.api.content import OptionalContent
from service.api.functions.json_span import loads
from service.api.validation import Ignored, RequestModel, invalid, only

_THOUGHT: Final = re.compile(r"\s*<think>\n*(.*?)\n*</think>\s*(.*)", re.DOTALL)


def _as_text(value: object) -> object:
    """Arguments that some SDKs send as an object, as text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class CalledFunction(RequestModel):
    """A call that the model made in an earlier reply."""

    name: str
    arguments: Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | dict[str, object])] = ""
    """A JSON object, as text. What is not one is shown to the model as it is: it was the model's own slip."""
    parsed_arguments: object = None
    """What the official SDK makes of them; it sends it back too. Left out, as ``parsed`` is."""

    def as_object(self) -> object:
        """The arguments as chat templates take them: an object, or broken ones as text."""
        if not self.arguments.strip():
            return {}
        try:
            arguments = loads(self.arguments)
        except ValueError:
            return self.arguments
        return arguments if isinstance(arguments, dict) else self.arguments


class CustomCall(RequestModel):
    """A call of a tool that takes free text."""

    name: str
    input: str = ""


class ToolCall(RequestModel):
    id: str
    type: Literal["function", "custom"] = "function"
    function: CalledFunction
    index: int | None = None
    """Of streamed calls, sent back as they came; of no meaning here."""
    custom: CustomCall | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_custom(cls, data: object) -> object:
        """A call of a custom tool as one of a function with the argument ``input``."""
        custom = data.get("custom") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(custom, dict) or data.get("function") is not None:
            return data
        arguments = {"input": custom.get("input") or ""}
        return {**data, "function": {"name": custom.get("name"), "arguments": arguments}}


class Message(RequestModel):
    """One turn. What a reply has beside its content is accepted when it is sent back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: OptionalContent = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The same as ``reasoning``, by its other name. The chat template decides whether it is shown again."""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    executed_tools: list[dict[str, object]] | None = None
    """Left out of the prompt: the content tells of them."""
    unflushed_blocks: list[dict[str, object]] | None = None
    final_answer: str | None = None
    """Left out of the prompt: the content holds it."""
    parsed: object = None
    refusal: str | None = None
    """Shown as the content of a message that has none."""
    name: Annotated[object, Ignored()] = None
    audio: Annotated[object, Ignored()] = None
    annotations: Annotated[object, Ignored([])] = None
    function_call: Annotated[object, only()] = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.content is None and self.role not in ("assistant", "tool"):
            raise invalid("only a message of an assistant or a tool may lack content", ".content")
        if self.role == "tool" and self.tool_call_id is None:
            raise invalid(
                "a message of role 'tool' needs the id of the call that it answers", ".tool_call_id"
            )
        if self.role != "assistant" and self.tool_calls:
            raise invalid("only an assistant's message has 'tool_calls'", ".tool_calls")
        return self

    def as_turn(self) -> dict[str, object]:
        """The turn as chat templates take it."""
        turn: dict[str, object] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or self.refusal or "",
        }
        if self.role == "assistant":
            if thought := self.reasoning or self.reasoning_content:
                turn["reasoning_content"] = thought
            elif parted := _THOUGHT.fullmatch(self.content or ""):
                # To the template tags in content are text, so an inline thought is passed as a field.
                turn |= {"reasoning_content": parted[1], "content": parted[2]}
        if self.tool_calls:
            turn["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.as_object()},
                }
                for call in self.tool_calls
            ]
        return turn


def check_tool_answers(messages: list[Message]) -> list[Message]:
    """Each message of role ``tool`` answers a call that stands before it."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        called |= {call.id for call in message.tool_calls or ()}
        if message.role == "tool" and message.tool_call_id not in called:
            raise invalid(
                f"no call before it has the id {message.tool_call_id!r} ('tool_call_id')",
                f"[{index}].tool_call_id",
            )
    return messages


Messages = Annotated[list[Message], Field(min_length=1), AfterValidator(check_tool_answers)]
