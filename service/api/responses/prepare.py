"""Prepare a Responses request by way of a chat request, so that both APIs share one implementation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from service.api.chat.prepare import PreparedChat, count_prompt_tokens, prepare_with
from service.api.chat.request import ChatRequest
from service.api.chat.suspension import Answers, LiveEpisode, Suspensions, is_code_call
from service.api.errors import ApiError, api_error_of
from service.api.files.choice import container_of_request
from service.api.files.containers import Containers, ContainerUse
from service.api.files.inputs import FilePart, file_part, resolve
from service.api.responses.history import recall, resolved, with_stored_replies
from service.api.responses.items import (
    PREFIXES,
    Conversation,
    CustomToolCall,
    CustomToolCallOutput,
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    MessageItem,
    Reasoning,
    ReasoningText,
    SkippedItem,
    input_item_id,
)
from service.api.responses.output import OutputBuilder
from service.api.responses.request import (
    LOGPROBS,
    SEALED,
    FunctionChoice,
    ResponseAllowedTools,
    ResponseRequest,
    TextOptions,
)
from service.api.responses.resume import find_suspended
from service.api.seal import Seal
from service.api.state import Server
from service.api.tools.definitions import AllowedCode, AllowedServer, AutoContainer, ProgrammaticTool
from service.api.tools.mcp import McpServerTool, open_tools
from service.api.validation import report_ignored, unreported
from service.common.json import Json
from service.store.files import FileStore
from service.store.responses import ResponseStore
from service.tools.mcp.hub import SessionTools

_PARAMS = {
    "messages": "input",
    "response_format": "text.format",
    "deferral": "tools",
    "json_schema": "text.format",
    "logprobs": "include",
    "reasoning_effort": "reasoning.effort",
    "thinking_budget": "reasoning.max_tokens",
}
"""Names of a chat request's fields in the Responses API."""
_WHOLE = ("messages", "response_format")
"""Fields of them whose parts have no counterpart."""


@dataclass(frozen=True, slots=True)
class PreparedResponse:
    """A Responses request that is ready to run."""

    id: str
    owner: str
    request: ResponseRequest
    items: list[InputItem]
    """The request's input, with references resolved."""
    chat: PreparedChat
    live: LiveEpisode
    base_url: str = ""
    """Address of this server, for links to files."""
    continued_from: str | None = None
    """Id of the response whose code this one continues; None for a new reply."""
    answers: Answers = field(default_factory=Answers)
    """Answers to that code."""

    @property
    def schema_param(self) -> str | None:
        """Request field that the JSON schema of the sampling comes from."""
        return _PARAMS.get(self.chat.schema_param or "", self.chat.schema_param)

    def input_items(self) -> list[Json]:
        """Return the request's own items, as they are stored and listed."""
        return [
            item.as_listed(input_item_id(PREFIXES[item.type], self.id, index))
            for index, item in enumerate(self.items)
            if not isinstance(item, SkippedItem)
        ]

    def output(self) -> OutputBuilder:
        """Return an empty output for this response."""
        chat, include = self.chat, self.request.include or ()
        marker = chat.policy.marker if chat.request.deferred else None
        if self.live.reply is None:
            self.live.reply = chat.reply(strict_calls=self.request.strict_tool_calls, hidden_marker=marker)
        return OutputBuilder(
            self.id,
            self.live.reply,
            tokenizer=chat.runner.engine.tokenizer if LOGPROBS in include else None,
            seal=self._seal if SEALED in include else None,
            tools=chat.code_tools,
            custom=self.request.custom_names,
            base_url=self.base_url,
            waiting=self.live.suspended,
            programs=self._has_programs,
        )

    @property
    def _has_programs(self) -> bool:
        # As in the response that this one continues, whose items the client knows.
        tools = self.chat.request.tools or ()
        return any(isinstance(tool, ProgrammaticTool) for tool in tools)

    def _seal(self, text: str) -> str:
        return self.chat.server.seal.close(text, owner=self.owner, model=self.request.model)


async def prepare_response(
    server: Server,
    store: ResponseStore,
    request: ResponseRequest,
    *,
    response_id: str,
    owner: str,
    containers: Containers,
    suspensions: Suspensions,
    base_url: str = "",
) -> PreparedResponse:
    """Prepare ``request`` to run on ``server``, or to continue code that waits for its outputs.

    Raises:
        ApiError: 404 for an unknown model, response or item; 400 for a field above its limit, a prompt that
            doesn't fit, or a field that the engine doesn't support; 409 if the code does not wait any more.
    """
    _check(request)
    items = await resolved(_own_items(server, request, owner), store, owner)
    found = await find_suspended(suspensions, store, request, items, owner)
    if found is not None:
        live, answers = found
        continued = PreparedResponse(response_id, owner, request, items, live.chat, live, base_url)
        return replace(continued, continued_from=live.reply_id, answers=answers)
    conversation = Conversation(server.engine.tokenizer, server.runner.policy)
    if request.previous_response_id is not None:
        await recall(conversation, store, request.previous_response_id, owner)
    _check_outputs(request, items, conversation)
    earlier_parts = [file_part(fields, "previous_response_id") for _, fields in conversation.file_parts]
    if not request.runs_code:
        _reject_files(items)
    server.check_model(request.model)
    items, parts = await _with_stored_files(containers.files, items, owner)
    conversation.add(await with_stored_replies(items, store, owner))
    container = await _container(
        containers,
        request,
        [*await _still_there(containers, earlier_parts, owner), *parts],
        conversation,
        owner,
    )
    tools = await _open_tools(server, request)
    try:
        chat = await _fitting(server, request, conversation, tools, container)
    except BaseException:
        if tools is not None:
            await tools.close()
        raise
    for name in chat.ignored:
        report_ignored(_PARAMS.get(name, name))
    # The sandbox and the traces name flushes by this id.
    chat = replace(chat, id=response_id)
    live = LiveEpisode(chat, owner, "responses")
    return PreparedResponse(response_id, owner, request, items, chat, live, base_url)


async def count_input_tokens(
    server: Server, store: ResponseStore, request: ResponseRequest, *, owner: str
) -> int:
    """Return the number of tokens of the prompt for ``request``, as `prepare_response` renders it.

    The lines about files are not counted, because they depend on the container.

    Raises:
        ApiError: as `prepare_response`.
    """
    _check(request)
    server.check_model(request.model)
    items = await resolved(_own_items(server, request, owner), store, owner)
    conversation = Conversation(server.engine.tokenizer, server.runner.policy)
    if request.previous_response_id is not None:
        await recall(conversation, store, request.previous_response_id, owner)
    _check_outputs(request, items, conversation)
    conversation.add(await with_stored_replies(items, store, owner))
    chat, proven = _chat_request(server, request, conversation, 0)
    tools = await _open_tools(server, request)
    try:
        return await count_prompt_tokens(server, chat, proven, tools)
    except ApiError as error:
        raise _renamed(error) from None


def _check_outputs(request: ResponseRequest, items: list[InputItem], conversation: Conversation) -> None:
    """Raise for an output whose call is neither in ``items`` nor in the earlier ``conversation``."""
    called = {item.call_id for item in items if isinstance(item, FunctionCall | CustomToolCall)}
    called |= set(conversation.call_ids())
    for index, item in enumerate(request.input):
        if not isinstance(item, FunctionCallOutput | CustomToolCallOutput) or is_code_call(item.call_id):
            continue
        if item.call_id not in called:
            param = f"input[{index}].call_id"
            message = f"'{param}': no earlier call has the id '{item.call_id[:80]}'."
            raise ApiError(400, message, param=param, code="invalid_value")


def _own_items(server: Server, request: ResponseRequest, owner: str) -> list[InputItem]:
    """Return the request's items with their sealed thoughts opened."""
    return [
        _opened(item, f"input[{index}]", server.seal, owner, request.model)
        for index, item in enumerate(request.input)
    ]


async def _open_tools(server: Server, request: ResponseRequest) -> SessionTools | None:
    if not request.runs_code or request.forces_call:
        return None
    return await open_tools(server.mcp, request.mcp_tools, request.code_functions)


def _reject_files(items: list[InputItem]) -> None:
    for index, item in enumerate(items):
        if isinstance(item, MessageItem) and item.file_parts:
            param = f"input[{index}].{item.file_parts[0][0]}"
            raise _unsupported(param, "parts of type 'input_file' need the tool 'code_interpreter'")


async def _with_stored_files(
    files: FileStore, items: list[InputItem], owner: str
) -> tuple[list[InputItem], list[FilePart]]:
    """Store the files that were sent inside messages, and return the items with their ids instead."""
    found: list[FilePart] = []
    result: list[InputItem] = []
    for index, item in enumerate(items):
        if isinstance(item, MessageItem) and item.file_parts:
            parts = [file_part(fields, f"input[{index}].{where}") for where, fields in item.file_parts]
            stored = [
                replace(part, file_id=file.id, file_data=None, filename=file.filename)
                for part, file in zip(parts, await resolve(files, parts, owner), strict=True)
            ]
            found += stored
            listed: list[Json] = [
                {"type": "input_file", "file_id": part.file_id, "filename": part.filename} for part in stored
            ]
            result.append(item.with_files(listed))
        else:
            result.append(item)
    return result, found


async def _still_there(containers: Containers, parts: list[FilePart], owner: str) -> list[FilePart]:
    """Return the files of earlier turns that were not deleted in the meantime."""
    ids = {part.file_id for part in parts if part.file_id is not None}
    known = {file.id for file in await containers.files.get_all(ids, owner)} if ids else set()
    return [part for part in parts if part.file_id in known]


async def _container(
    containers: Containers,
    request: ResponseRequest,
    parts: list[FilePart],
    conversation: Conversation,
    owner: str,
) -> ContainerUse | None:
    """Return the container in which the response's code runs, if it lives across requests."""
    tool = request.code_tool
    if tool is None or not request.runs_code:
        return None
    index = (request.tools or []).index(tool)
    return await container_of_request(
        containers,
        None if tool.container == AutoContainer() else tool.container,
        parts,
        owner,
        param=f"tools[{index}].container",
        by_default=True,
        on_expired=None if request.deferral is None else request.deferral.on_expired,
        previous=conversation.container,
        figures=None if request.deferral is None else request.deferral.figures,
    )


def _opened(item: InputItem, at: str, seal: Seal, owner: str, model: str) -> InputItem:
    """Open a sealed thought. One that can't be opened keeps the text that the client sent.

    Args:
        item: an item of the request.
        at: its path.
        seal: the server's keys.
        owner: the client.
        model: the model in the request.
    """
    if not isinstance(item, Reasoning) or not item.encrypted_content:
        return item
    if (text := seal.open(item.encrypted_content, owner=owner, model=model)) is None:
        report_ignored(f"{at}.encrypted_content", label="encrypted_content")
        return item
    return item.model_copy(update={"content": [ReasoningText(text=text)]})


def _check(request: ResponseRequest) -> None:
    if (
        request.forces_call
        and not request.callable_functions
        and not isinstance(request.tool_choice, FunctionChoice)
    ):
        if not request.runs_code:
            raise _unsupported("tool_choice", "'tools' contains no tool to call")
        raise _unsupported("tool_choice", "the model decides when code runs, so a run can't be required")
    if not request.runs_code and request.deferral is not None:
        raise _unsupported(
            "deferral", "it configures code execution, but 'tools' contains no usable code_interpreter"
        )
    names = {tool.name for tool in request.functions}
    choice = request.tool_choice
    if isinstance(choice, FunctionChoice) and choice.name not in names:
        raise _unsupported("tool_choice.name", f"'tools' contains no function {choice.name!r}")
    if not isinstance(choice, ResponseAllowedTools):
        return
    labels = {tool.server_label for tool in request.tools or () if isinstance(tool, McpServerTool)}
    for index, tool in enumerate(choice.tools):
        at = f"tool_choice.tools[{index}]"
        if isinstance(tool, FunctionChoice) and tool.name not in names:
            raise _unsupported(f"{at}.name", f"'tools' contains no function {tool.name!r}")
        if isinstance(tool, AllowedCode) and not request.offers_code:
            raise _unsupported(at, "'tools' contains no code_interpreter")
        if isinstance(tool, AllowedServer) and tool.server_label not in labels:
            raise _unsupported(f"{at}.server_label", f"'tools' contains no server {tool.server_label!r}")


def _unsupported(param: str, why: str) -> ApiError:
    return ApiError(400, f"'{param}': {why}.", param=param, code="unsupported_parameter")


async def _fitting(
    server: Server,
    request: ResponseRequest,
    conversation: Conversation,
    tools: SessionTools | None,
    container: ContainerUse | None,
) -> PreparedChat:
    """Prepare the chat request; with ``truncation: auto``, of the longest fitting end of the conversation."""
    messages = conversation.messages
    try:
        return await _prepare_chat(server, request, conversation, 0, tools, container)
    except ApiError as error:
        if request.truncation != "auto" or error.code != "context_length_exceeded":
            raise
        too_long = error
    # Find the fewest messages to drop by bisection, because each attempt renders the whole prompt.
    few, many = 1, len(messages) - 1
    chat: PreparedChat | None = None
    while few <= many:
        half = (few + many) // 2
        try:
            start = _whole_from(messages, half)
            chat = await _prepare_chat(server, request, conversation, start, tools, container)
        except ApiError as error:
            if error.code != "context_length_exceeded":
                raise
            few = half + 1
        else:
            many = half - 1
    if chat is None:
        raise too_long
    return chat


def _whole_from(messages: list[Json], start: int) -> int:
    """Return the first index from ``start`` that doesn't separate a tool result from its call."""
    later = range(start, len(messages))
    return next((index for index in later if messages[index]["role"] != "tool"), len(messages))


async def _prepare_chat(
    server: Server,
    request: ResponseRequest,
    conversation: Conversation,
    start: int,
    tools: SessionTools | None,
    container: ContainerUse | None,
) -> PreparedChat:
    """Prepare the chat request for the conversation from message ``start`` on."""
    chat, proven = _chat_request(server, request, conversation, start)
    try:
        return await prepare_with(server, chat, tools, proven, container)
    except ApiError as error:
        raise _renamed(error) from None


def _chat_request(
    server: Server, request: ResponseRequest, conversation: Conversation, start: int
) -> tuple[ChatRequest, dict[int, tuple[int, ...]]]:
    """Return the chat request for the conversation from message ``start`` on, and the token ids of its
    messages that are stored replies.
    """
    messages = conversation.messages[start:]
    first: list[Json] = [{"role": "system", "content": request.instructions}] if request.instructions else []
    moved = len(first) - start
    proven = {index + moved: ids for index, ids in conversation.proven.items() if index >= start}
    try:
        fields = _chat_fields(request, [*first, *messages])
        fields["deferral"] = {"enabled": request.runs_code, **_code_options(server, request)}
        fields["stream"] = request.stream or request.background  # whether anyone can watch the reply
        with unreported():
            return ChatRequest.model_validate(fields), proven
    except ValidationError as error:
        detail = error.errors()[0]
        raise _renamed(api_error_of(detail, detail["loc"], fields)) from None


def _renamed(error: ApiError) -> ApiError:
    """Return an error of the chat request with the field names of the Responses API."""
    param = error.param
    for name, here in _PARAMS.items():
        if param == name or (name in _WHOLE and re.match(rf"{name}[.\[]", param or "")):
            param = here
    message = error.message.replace(f"'{error.param}'", f"'{param}'")
    return ApiError(error.status, message, param=param, code=error.code, retry_after_s=error.retry_after_s)


def _chat_fields(request: ResponseRequest, messages: list[Json]) -> Json:
    taken = {
        "model",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "parallel_tool_calls",
        "presence_penalty",
        "frequency_penalty",
        "user",
    }
    fields = request.model_dump(include=taken, exclude_none=True)
    fields |= {"messages": messages, "max_tokens": request.max_output_tokens, "metadata": request.metadata}
    if LOGPROBS in (request.include or ()):
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    if request.reasoning is not None:
        fields["reasoning_effort"] = request.reasoning.effort
        fields["thinking_budget"] = request.reasoning.max_tokens
    if request.form.to_response() != TextOptions().to_response():
        fields["response_format"] = request.form.as_response_format()
    if request.structured_outputs is not None:
        fields["structured_outputs"] = request.structured_outputs.model_dump(exclude_none=True, by_alias=True)
    if request.runs_code and any(isinstance(tool, ProgrammaticTool) for tool in request.tools or ()):
        fields["tools"] = [{"type": "programmatic_tool_calling"}]
    if functions := request.allowed_functions:
        keep = {"name", "description", "parameters", "strict", "format", "allowed_callers", "output_schema"}
        fields["tools"] = fields.get("tools", []) + [
            {"type": tool.type, tool.type: tool.model_dump(include=keep, exclude_none=True)}
            for tool in functions
        ]
        choice = request.tool_choice
        if isinstance(choice, FunctionChoice):
            fields["tool_choice"] = {"type": choice.type, choice.type: {"name": choice.name}}
        else:  # the tools that are not allowed were left out
            fields["tool_choice"] = choice.mode if isinstance(choice, ResponseAllowedTools) else choice
    return fields


def _code_options(server: Server, request: ResponseRequest) -> Json:
    if not request.runs_code:
        return {}
    options: dict[str, Any] = {}
    if request.deferral is not None:
        options = request.deferral.model_dump(exclude_none=True, exclude={"on_expired", "figures"})
    if request.max_tool_calls is not None:
        # One turn for each call and a last one without, up to the usual limit.
        most = options.get("max_turns") or server.settings.max_turns or server.runner.policy.max_turns
        options["max_turns"] = min(request.max_tool_calls + 1, most)
    return options
