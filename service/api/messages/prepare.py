"""Prepare a Messages request by way of a chat request, so that all APIs share one implementation."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from pydantic import ValidationError

from service.api.chat.history import find_replies, reply_key
from service.api.chat.prepare import PreparedChat, count_prompt_tokens, effective_policy, prepare
from service.api.chat.request import ChatRequest, DeferralOptions, Message
from service.api.chat.suspension import Answers
from service.api.errors import ApiError, api_error_of
from service.api.files.choice import container_of_request
from service.api.files.containers import Containers, ContainerUse
from service.api.files.inputs import FilePart
from service.api.messages.blocks import (
    CodeExecutionToolResultBlock,
    ContainerUploadBlock,
    InputBlock,
    InputMessage,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from service.api.messages.output import MessageBuilder
from service.api.messages.request import CountTokensRequest, MessagesRequest
from service.api.messages.resume import LiveMessage
from service.api.seal import Seal
from service.api.state import Server
from service.api.tools.mcp import open_tools
from service.api.validation import report_ignored, unreported
from service.common.json import Json
from service.deferral.observation import executed_text
from service.deferral.policy import DeferralPolicy
from service.engines.base import Tokenizer
from service.store.replies import ReplyStore

_BETWEEN_TURNS = "\n\n"
"""Separates the texts of combined turns."""
_PARAMS = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "deferral": "tools",
    "reasoning_effort": "thinking",
    "thinking_budget": "thinking.budget_tokens",
}
"""Names of a chat request's fields in the Messages API."""


@dataclass(frozen=True, slots=True)
class PreparedMessage:
    """A Messages request that is ready to run."""

    id: str
    owner: str
    request: MessagesRequest
    live: LiveMessage
    """The episode, which an earlier request may have started."""
    answers: Answers = field(default_factory=Answers)
    """Results with which it continues."""

    @property
    def chat(self) -> PreparedChat:
        """The chat request that the episode runs."""
        return self.live.chat

    @property
    def schema_param(self) -> str | None:
        """Request field that the JSON schema of the sampling comes from."""
        return _PARAMS.get(self.chat.schema_param or "", self.chat.schema_param)

    def builder(self) -> MessageBuilder:
        """Return a builder for this message."""
        # The fields of the first request apply to the whole reply.
        chat, live, request = self.chat, self.live, self.live.request
        if live.reply is None:
            marker = chat.policy.marker if chat.request.deferred else None
            live.reply = chat.reply(strict_calls=False, hidden_marker=marker)
        names = {} if chat.code_tools is None else chat.code_tools.client.names
        callers = {tool.name: tool.code_caller or "" for tool in request.client_tools}
        return MessageBuilder(
            self.id,
            request.model,
            live.usage,
            live.reply,
            seal=lambda text: chat.server.seal.close(text, owner=self.owner, model=request.model),
            max_tokens=request.max_tokens,
            omits_thoughts=request.thinking is not None and request.thinking.display == "omitted",
            stops=request.stop_sequences or (),
            container=chat.container,
            functions={name: (shown, callers[shown]) for name, shown in names.items()},
        )

    def reply_key(self, content: Sequence[Json]) -> str:
        """Return the lookup key of the reply with the blocks ``content``; see `reply_key`."""
        chat = self.chat
        converter = MessageConverter(
            chat.server.engine.tokenizer,
            chat.policy,
            chat.server.seal,
            owner=self.owner,
            model=self.request.model,
        )
        message = InputMessage.model_validate({"role": "assistant", "content": content})
        converter.add([message])
        reply = Message.model_validate(converter.messages[0])
        return reply_key(reply.content or "", reply.earlier_calls())


async def prepare_message(
    server: Server,
    store: ReplyStore,
    request: MessagesRequest,
    container: ContainerUse | None = None,
    *,
    owner: str,
) -> PreparedMessage:
    """Prepare ``request`` to run on ``server``, in ``container`` if it lives across requests.

    Raises:
        ApiError: 404 for an unknown model; 400 for a field above its limit, a prompt that doesn't fit, or a
            field that the engine doesn't support; 400 or 424 for an MCP server that can't be used.
    """
    chat_request = _chat_request(server, request, owner)
    if request.thinks and not chat_request.thinks:
        report_ignored("thinking")
    try:
        chat = await prepare(server, chat_request, await find_replies(store, owner, chat_request), container)
    except ApiError as error:
        raise _renamed(error) from None
    for name in chat.ignored:
        report_ignored(_PARAMS.get(name, name))
    message_id = f"msg_{secrets.token_hex(12)}"
    # The sandbox and the traces name flushes by this id.
    live = LiveMessage(replace(chat, id=message_id), owner, request)
    return PreparedMessage(message_id, owner, request, live)


def continue_message(
    live: LiveMessage, answers: Answers, request: MessagesRequest, *, owner: str
) -> PreparedMessage:
    """Return the message in which ``request`` continues the reply ``live`` with its results."""
    return PreparedMessage(f"msg_{secrets.token_hex(12)}", owner, request, live, answers)


async def count_tokens(server: Server, store: ReplyStore, request: CountTokensRequest, *, owner: str) -> int:
    """Return the number of tokens of the prompt for ``request``, as `prepare_message` renders it.

    The lines about files are not counted, because they depend on the container.

    Raises:
        ApiError: 404 for an unknown model; 400 if the chat template rejects the messages; 400 or 424 for an
            MCP server that can't be used.
    """
    server.check_model(request.model)
    chat_request = _chat_request(server, request, owner)
    mcp_tools, functions = chat_request.mcp_tools, chat_request.code_functions
    try:
        proven = await find_replies(store, owner, chat_request)
        tools = await open_tools(server.mcp, mcp_tools, functions) if chat_request.deferred else None
        return await count_prompt_tokens(server, chat_request, proven, tools)
    except ApiError as error:
        raise _renamed(error) from None


async def message_container(
    containers: Containers, request: MessagesRequest, owner: str
) -> ContainerUse | None:
    """Return the container in which the message's code runs, if it lives across requests.

    Raises:
        ApiError: 400 if files or a container can't be used here, 404 for an unknown file or container.
    """
    parts = [
        FilePart(f"messages[{index}].content[{place}]", block.file_id, id_field=".file_id")
        for index, message in enumerate(request.messages)
        for place, block in enumerate(message.content)
        if isinstance(block, ContainerUploadBlock)
    ]
    obstacle = (
        None if request.runs_code else "only code can read files, but 'tools' contains no code_execution."
    )
    return await container_of_request(
        containers,
        request.container_id if request.runs_code else None,
        parts,
        owner,
        param="container",
        by_default=True,
        obstacle=obstacle,
    )


def _chat_request(server: Server, request: CountTokensRequest, owner: str) -> ChatRequest:
    """Return the chat request with the same prompt and sampling.

    Raises:
        ApiError: 400 with the name of an invalid field.
    """
    options = {} if request.deferral is None else request.deferral.model_dump(exclude_none=True)
    policy = effective_policy(server, DeferralOptions(**options))
    turns = MessageConverter(server.engine.tokenizer, policy, server.seal, owner=owner, model=request.model)
    if request.system:
        turns.messages.append({"role": "system", "content": request.system})
    turns.add(request.messages)
    fields: Json = {
        "model": request.model,
        "messages": turns.messages,
        "continue_final_message": turns.messages[-1]["role"] == "assistant" or None,
        "deferral": {"enabled": request.runs_code, **(options if request.runs_code else {})},
        **_tool_fields(request),
    }
    if request.thinking is not None:
        budget = request.thinking.budget_tokens if request.thinks else None
        fields["thinking"] = {"type": "enabled" if request.thinks else "disabled", "budget_tokens": budget}
        fields["reasoning_effort"] = request.effort if request.thinks else None
    if (form := request.format) is not None:
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.schema_}}
    if isinstance(request, MessagesRequest):
        fields |= _sampling_fields(request)
    try:
        with unreported():
            return ChatRequest.model_validate(fields)
    except ValidationError as error:
        detail = error.errors()[0]
        raise _renamed(api_error_of(detail, detail["loc"], fields)) from None


def _tool_fields(request: CountTokensRequest) -> Json:
    """Return the chat request's fields for the client's tools and the choice between them."""
    choice = request.tool_choice
    mcp: list[Json] = [tool.as_request() for tool in request.mcp_tools]
    if not request.client_tools or (choice is not None and choice.type == "none"):
        return {"tools": mcp} if mcp else {}
    fields: Json = {
        "tools": [
            *mcp,
            *(
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "parameters": tool.input_schema,
                        "allowed_callers": [
                            *(["direct"] if tool.is_direct else []),
                            *(["programmatic"] if tool.code_caller and request.runs_code else []),
                        ],
                        **({} if tool.description is None else {"description": tool.description}),
                    },
                }
                for tool in request.client_tools
            ),
        ]
    }
    if choice is None:
        return fields
    if choice.type == "tool":
        fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        fields["tool_choice"] = "required" if choice.type == "any" else "auto"
    if choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields


def _sampling_fields(request: MessagesRequest) -> Json:
    taken = {"max_tokens", "temperature", "top_p", "top_k", "min_p", "seed"}
    taken |= {"presence_penalty", "frequency_penalty"}
    fields: Json = request.model_dump(include=taken, exclude_none=True)
    if request.stop_sequences:
        fields["stop"] = request.stop_sequences
    if request.metadata is not None and request.metadata.user_id is not None:
        fields["user"] = request.metadata.user_id
    return fields


def _renamed(error: ApiError) -> ApiError:
    """Return an error of the chat request with the field names of the Messages API."""
    param, message = error.param, error.message
    if error.code == "context_length_exceeded":
        message = f"prompt is too long: {message}"  # the words that agents look for before they compact
    for name, here in _PARAMS.items():
        if param == name or (name != "deferral" and re.match(rf"{name}[.\[]", param or "")):
            param, message = here, message.replace(f"'{param}'", f"'{here}'")
    return ApiError(error.status, message, param=param, code=error.code, retry_after_s=error.retry_after_s)


class MessageConverter:
    """Converter of messages to those of a chat request.

    Consecutive turns of one role are combined. A tool result becomes a message of role ``tool``. Calls that
    code made are left out, with their results: the model has not seen them, and wrote the parts of such a
    reply as one turn.

    Attributes:
        messages: the chat request's messages.

    Args:
        tokenizer: tokenizer of the model.
        policy: sets the form in which the model reads outputs of code.
        seal: opens thoughts that this server sealed.
        owner: owner of the thoughts.
        model: name of the model that had them.
    """

    def __init__(
        self, tokenizer: Tokenizer, policy: DeferralPolicy, seal: Seal, *, owner: str, model: str
    ) -> None:
        self.messages: list[Json] = []
        self._tokenizer = tokenizer
        self._policy = policy
        self._seal = seal
        self._owner = owner
        self._model = model

    def add(self, messages: Sequence[InputMessage]) -> None:
        """Add all ``messages`` in order."""
        last = max((index for index, message in enumerate(messages) if message.role == "user"), default=0)
        shown = [
            message
            for index, message in enumerate(messages)
            if index > last or message.role != "system" or message.clear_at != "next_user_message"
        ]
        for role, turns in groupby(_without_code_calls(shown), key=lambda message: message.role):
            blocks: list[InputBlock] = []
            for turn in turns:
                if blocks and turn.content and _is_text(blocks[-1]) and _is_text(turn.content[0]):
                    blocks.append(TextBlock(text=_BETWEEN_TURNS))
                blocks += turn.content
            self._add_turn(role, blocks)

    def _add_turn(self, role: str, blocks: Sequence[InputBlock]) -> None:
        if role == "assistant":
            self.messages.append(self._reply(blocks))
            return
        count, text = len(self.messages), ""
        for block in blocks:
            if isinstance(block, TextBlock):
                text += block.text
            elif isinstance(block, ToolResultBlock):
                if text:
                    self.messages.append({"role": role, "content": text})
                    text = ""
                answer: Json = {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.text}
                self.messages.append(answer)
        if text or len(self.messages) == count:
            self.messages.append({"role": role, "content": text})

    def _reply(self, blocks: Sequence[InputBlock]) -> Json:
        """Return the reply that consists of ``blocks``."""
        text, thought, calls = "", "", []
        has_text = False
        for block in blocks:
            match block:
                case TextBlock():
                    text += block.text
                    has_text = True
                case ThinkingBlock() | RedactedThinkingBlock():
                    if not has_text:  # outputs of code that ran inside the thought
                        thought, text = thought + text, ""
                    thought += self._opened(block)
                case CodeExecutionToolResultBlock():
                    text += executed_text(block.content.output, self._tokenizer, self._policy)
                case ToolUseBlock():
                    function = {"name": block.name, "arguments": block.input}
                    calls.append({"id": block.id, "type": "function", "function": function})
        reply: Json = {"role": "assistant", "content": text}
        if thought:
            reply["reasoning_content"] = thought
        if calls:
            reply["tool_calls"] = calls
        return reply

    def _opened(self, block: ThinkingBlock | RedactedThinkingBlock) -> str:
        """Return the text of a thought. One that can't be opened is empty."""
        if isinstance(block, ThinkingBlock) and block.thinking:
            return block.thinking
        sealed = block.data if isinstance(block, RedactedThinkingBlock) else block.signature
        if not sealed:
            return ""
        if (text := self._seal.open(sealed, owner=self._owner, model=self._model)) is None:
            report_ignored(f"messages.{block.type}")
            return ""
        return text


def _without_code_calls(messages: Sequence[InputMessage]) -> list[InputMessage]:
    """Return ``messages`` without calls that code made, their results, and messages of only these."""
    calls = {
        block.id
        for message in messages
        for block in message.content
        if isinstance(block, ToolUseBlock) and block.is_from_code
    }
    if not calls:
        return list(messages)
    kept: list[InputMessage] = []
    for message in messages:
        content = [block for block in message.content if _call_id(block) not in calls]
        if content or not message.content:
            kept.append(message.model_copy(update={"content": content}))
    return kept


def _call_id(block: InputBlock) -> str | None:
    """Return the id of a call or of its result."""
    if isinstance(block, ToolUseBlock):
        return block.id
    return block.tool_use_id if isinstance(block, ToolResultBlock) else None


def _is_text(block: InputBlock) -> bool:
    return isinstance(block, TextBlock) and bool(block.text)
