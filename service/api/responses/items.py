"""Input items: their validation, their ids, and their conversion to the messages of a chat request.

Output items of earlier responses are accepted as input. Only replies whose token ids are found in the store
contain control tokens again. Everything else that a client sends is plain text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from service.api.validation import (
    FileParts,
    Ignored,
    RequestModel,
    ResponseContent,
    Skipped,
    in_union,
    invalid,
)
from service.common.json import Json
from service.deferral.observation import executed_text
from service.deferral.policy import DeferralPolicy
from service.engines.base import Tokenizer
from service.episode.reasoning_parser import without_thought
from service.tools.base import CODE_CALL_PREFIX

PREFIXES: Final = {
    "message": "msg",
    "reasoning": "rs",
    "code_interpreter_call": "ci",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "item_reference": "ref",
    "mcp_list_tools": "mcpl",
    "mcp_call": "mcp",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
    "program": "prog",
    "program_output": "progo",
}
"""Prefix of an item's id, by its type."""


class Item(RequestModel):
    """Fields of all items."""

    id: str | None = Field(default=None, max_length=512)
    status: str | None = Field(default=None, max_length=32)

    def as_listed(self, item_id: str) -> Json:
        """Return the item as ``input_items`` lists it, with ``item_id`` as its id."""
        return {**self.model_dump(exclude_none=True), "id": item_id, "status": self.status or "completed"}


class MessageItem(Item, FileParts):
    """One message. Parts of its content are joined without a separator; files are taken out of it."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: ResponseContent
    phase: Annotated[object, Ignored("commentary", "final_answer")] = None

    def as_listed(self, item_id: str) -> Json:
        part: Json = {"type": "input_text", "text": self.content}
        files = [dict(fields) for _, fields in self.file_parts]
        if self.role == "assistant":
            part = {"type": "output_text", "text": self.content, "annotations": [], "logprobs": []}
        return {**super().as_listed(item_id), "content": [*files, part]}


class ReasoningText(RequestModel):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class Reasoning(Item):
    """A thought of an earlier response."""

    type: Literal["reasoning"]
    summary: list[dict[str, object]] = Field(default_factory=list)
    content: list[ReasoningText] = Field(default_factory=list)
    encrypted_content: str | None = None
    """The thought, sealed by this server."""


class Logs(RequestModel):
    type: Literal["logs"]
    logs: str
    tables: object = None
    """HTML of tables, which the model doesn't read."""


class Image(RequestModel):
    """A figure, which the model doesn't read."""

    type: Literal["image"]
    url: str = ""

    @property
    def logs(self) -> str:
        return ""


class CodeInterpreterCall(Item):
    """Code that ran in an earlier response."""

    type: Literal["code_interpreter_call"]
    code: str = ""
    container_id: str = ""
    outputs: list[Annotated[Logs | Image, Field(discriminator="type")]] | None = None
    """None if the response didn't include them; they are then read from the store."""
    execution: Annotated[object, Field(exclude=True)] = None
    """Times and files of the run, which the model doesn't read."""


class CallCaller(RequestModel):
    """Origin of a call: the model (``direct``), or code (``program``), with the id of its item."""

    type: Literal["direct", "program"]
    caller_id: str | None = Field(default=None, max_length=512)


class FunctionCall(Item):
    """A call of one of the client's functions."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str = ""
    parsed_arguments: object = None
    caller: CallCaller | None = None


class Program(Item):
    """Code of an earlier response, which has called functions of the client."""

    type: Literal["program"]
    call_id: str = ""
    code: str = ""
    fingerprint: str = ""


class ProgramOutput(Item):
    """The output of such code."""

    type: Literal["program_output"]
    call_id: str = ""
    result: str = ""


class FunctionCallOutput(Item):
    """The result of a function call."""

    type: Literal["function_call_output"]
    call_id: str
    output: ResponseContent
    caller: CallCaller | None = None


class CustomToolCall(Item):
    """A call of a free-text tool. The model sees a function with the argument ``input``."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str = ""


class CustomToolCallOutput(Item):
    """The result of a custom tool call."""

    type: Literal["custom_tool_call_output"]
    call_id: str
    output: ResponseContent


class McpListTools(Item):
    """The tools of an MCP server in an earlier response. The request's own ``tools`` count."""

    type: Literal["mcp_list_tools"]
    server_label: str = ""
    tools: list[dict[str, object]] = Field(default_factory=list)
    error: object = None


class McpCall(Item):
    """A call of an MCP tool in an earlier response. The model has seen what its code printed of it."""

    type: Literal["mcp_call"]
    server_label: str = ""
    name: str = ""
    arguments: str = ""
    output: str | None = None
    error: object = None
    approval_request_id: str | None = None


class McpApprovalRequest(Item):
    """A request for the approval of a call in an earlier response."""

    type: Literal["mcp_approval_request"]
    server_label: str = ""
    name: str = ""
    arguments: str = ""


class McpApprovalResponse(Item):
    """The decision about such a call."""

    type: Literal["mcp_approval_response"]
    approval_request_id: str = Field(max_length=80)
    approve: bool
    reason: str | None = Field(default=None, max_length=500)


class ItemReference(Item):
    """Reference to a stored item."""

    type: Literal["item_reference"] = "item_reference"

    @model_validator(mode="after")
    def _has_id(self) -> Self:
        if self.id is None:
            raise invalid("an item reference needs the item's 'id'")
        return self


class SkippedItem(Skipped):
    """An item of a type that this server never creates, from a conversation with another server."""


_in_union = in_union(frozenset(PREFIXES))


def _tag(value: object) -> str | None:
    if isinstance(value, dict) and value.get("type") is None:
        return "<message>" if "role" in value else "<item_reference>"
    if isinstance(value, dict) and str(value.get("type")) in _INPUT_PARTS:
        return None
    return _in_union(value)


_INPUT_PARTS: Final = frozenset(
    {"input_image", "input_file", "input_audio", "input_text", "text", "image_url"}
)
"""Message parts in place of an item. They are rejected, because skipping them would change the question."""

InputItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[Reasoning, Tag("<reasoning>")]
    | Annotated[CodeInterpreterCall, Tag("<code_interpreter_call>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[CustomToolCall, Tag("<custom_tool_call>")]
    | Annotated[CustomToolCallOutput, Tag("<custom_tool_call_output>")]
    | Annotated[McpListTools, Tag("<mcp_list_tools>")]
    | Annotated[McpCall, Tag("<mcp_call>")]
    | Annotated[McpApprovalRequest, Tag("<mcp_approval_request>")]
    | Annotated[McpApprovalResponse, Tag("<mcp_approval_response>")]
    | Annotated[Program, Tag("<program>")]
    | Annotated[ProgramOutput, Tag("<program_output>")]
    | Annotated[ItemReference, Tag("<item_reference>")]
    | Annotated[SkippedItem, Tag("<skipped>")],
    Discriminator(
        _tag,
        custom_error_type="unsupported_parameter",
        custom_error_message="this server does not support items of this type",
    ),
]


def _as_list(value: object) -> object:
    return [{"type": "message", "role": "user", "content": value}] if isinstance(value, str) else value


Input = Annotated[
    list[InputItem],
    Field(max_length=10_000),
    BeforeValidator(_as_list, json_schema_input_type=str | list[InputItem]),
]


_RESPONSE: Final = re.compile(r"resp_[0-9a-f]{32}")
_ITEM: Final = re.compile(r"[a-z]+_([0-9a-f]{32})_i?\d+")


def new_response_id() -> str:
    """Return a new id that can't be guessed."""
    return f"resp_{secrets.token_hex(16)}"


def is_response_id(text: str) -> bool:
    """Return whether ``text`` has the form of a response id. Other text is not looked up in the database."""
    return _RESPONSE.fullmatch(text) is not None


def output_item_id(kind: str, response_id: str, index: int) -> str:
    """Return the id of the output item at ``index``; ``kind`` is OpenAI's prefix."""
    return f"{kind}_{response_id.removeprefix('resp_')}_{index}"


def input_item_id(kind: str, response_id: str, index: int) -> str:
    """Return the id of the input item at ``index``."""
    return f"{kind}_{response_id.removeprefix('resp_')}_i{index}"


def response_of(item_id: str) -> str | None:
    """Return the id of the response that an item belongs to; None for a foreign id."""
    found = _ITEM.fullmatch(item_id)
    return None if found is None else f"resp_{found[1]}"


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A complete reply of an earlier response, with its token ids from the store."""

    ids: tuple[int, ...]
    text: str
    items: tuple[InputItem, ...] = ()
    """The reply as output items if it calls functions. They name its calls, and take its place if the ids
    can't be used."""
    container: tuple[str, str | None] | None = None
    """Container of its last code and the id of that item; None if no code ran."""


class Conversation:
    """Messages of a chat request, built from items.

    Attributes:
        messages: messages in the form of chat completions.
        proven: token ids of the messages that are stored replies, by index.

    Args:
        tokenizer: tokenizer of the model.
        policy: sets the form in which the model reads outputs of code.
    """

    def __init__(self, tokenizer: Tokenizer, policy: DeferralPolicy) -> None:
        self.messages: list[Json] = []
        self.proven: dict[int, tuple[int, ...]] = {}
        self._tokenizer = tokenizer
        self._policy = policy
        self._text: list[str] = []
        self._calls: list[Json] = []
        self._thought: list[str] = []
        self.container: tuple[str, str] | None = None
        """Container and response of the last code that ran in it."""
        self.file_parts: list[tuple[str, dict[str, Any]]] = []
        """Path below the item and fields of the files of all messages."""

    def add_message(self, role: str, content: str) -> None:
        """Add a message with exactly this content."""
        self._end_reply()
        self.messages.append({"role": role, "content": content})

    def add_reply(self, reply: StoredReply) -> None:
        """Add an earlier reply with its sampled tokens."""
        if reply.items:
            self.add(reply.items)
        else:
            self.add_message("assistant", reply.text)
        if reply.container is not None:
            self.note_container(*reply.container)
        self.proven[len(self.messages) - 1] = without_thought(reply.ids, self._tokenizer)

    def add(self, items: Iterable[InputItem | StoredReply]) -> None:
        """Add items in order. Consecutive output items of the model become one reply again."""
        for item in items:
            self._add(item)
        self._end_reply()

    def _add(self, item: InputItem | StoredReply) -> None:
        match item:
            case StoredReply():
                self._end_reply()
                self.add_reply(item)
            case MessageItem(role="assistant"):
                self._text.append(item.content)
            case MessageItem():
                self.add_message(item.role, item.content)
                self.file_parts += item.file_parts
            case Reasoning():
                self._thought += [part.text for part in item.content]
            case CodeInterpreterCall():
                self.note_container(item.container_id, item.id)
                if item.outputs is not None:  # without them the model was shown nothing
                    logs = "".join(output.logs for output in item.outputs)
                    self._text.append(executed_text(logs, self._tokenizer, self._policy))
            case ProgramOutput():
                self._text.append(executed_text(item.result, self._tokenizer, self._policy))
            case FunctionCall() | FunctionCallOutput() if item.call_id.startswith(CODE_CALL_PREFIX):
                pass  # between code and the client; the model reads what the code prints
            case FunctionCall():
                function = {"name": item.name, "arguments": item.arguments}
                self._calls.append({"id": item.call_id, "type": "function", "function": function})
            case CustomToolCall():
                function = {"name": item.name, "arguments": json.dumps({"input": item.input})}
                self._calls.append({"id": item.call_id, "type": "function", "function": function})
            case FunctionCallOutput() | CustomToolCallOutput():
                self.add_message("tool", item.output)
                self.messages[-1]["tool_call_id"] = item.call_id

    def call_ids(self) -> list[str]:
        """Return the ids of all calls so far."""
        calls = [call for message in self.messages for call in message.get("tool_calls", ())]  # type: ignore[attr-defined]
        return [str(call["id"]) for call in calls]

    def note_container(self, container_id: str, item_id: str | None) -> None:
        """Note the container of a call of the code interpreter."""
        response_id = None if item_id is None else response_of(item_id)
        if response_id is not None and container_id.startswith("cntr_"):
            self.container = (container_id, response_id)

    def _end_reply(self) -> None:
        if self._text or self._calls or self._thought:
            message: Json = {"role": "assistant", "content": "".join(self._text)}
            if self._thought:
                message["reasoning_content"] = "".join(self._thought)
            if self._calls:
                message["tool_calls"] = self._calls
            self.messages.append(message)
        self._text, self._calls, self._thought = [], [], []
