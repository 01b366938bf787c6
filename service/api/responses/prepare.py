"""From a checked request to a job that may run, by way of a chat request: what both have is done once."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pydantic import ValidationError

from service.api.chat.prepare import ChatJob, prepare
from service.api.chat.request import ChatRequest
from service.api.errors import ApiError, complaint
from service.api.responses.history import recall, resolved, with_stored_replies
from service.api.responses.items import (
    PREFIXES,
    Conversation,
    InputItem,
    Reasoning,
    ReasoningText,
    SkippedItem,
    input_item_id,
)
from service.api.responses.output import Reply
from service.api.responses.request import LOGPROBS, SEALED, FunctionChoice, ResponseRequest, TextOptions
from service.api.responses.seal import Seal
from service.api.state import Server
from service.api.tools.definitions import Functions
from service.api.validation import report, unreported
from service.common.json import Json
from service.store.responses import ResponseStore

_PARAMS = {
    "messages": "input",
    "response_format": "text.format",
    "deferral": "tools",
    "json_schema": "text.format",
    "logprobs": "include",
}
"""What a chat request calls differently."""
_WHOLE = ("messages", "response_format")
"""Those of them whose parts have no counterpart."""


@dataclass(frozen=True, slots=True)
class ResponseJob:
    """A response that may run."""

    id: str
    owner: str
    request: ResponseRequest
    items: list[InputItem]
    """The request's input, with references replaced by what they name."""
    chat: ChatJob

    @property
    def schema_param(self) -> str | None:
        """As the chat job's, by its name here."""
        return _PARAMS.get(self.chat.schema_param or "", self.chat.schema_param)

    def input_items(self) -> list[Json]:
        """The request's own items, as they are stored and listed."""
        return [
            item.as_listed(input_item_id(PREFIXES[item.type], self.id, index))
            for index, item in enumerate(self.items)
            if not isinstance(item, SkippedItem)
        ]

    def reply(self) -> Reply:
        """An empty reply to it."""
        functions = [tool.function for tool in self.chat.request.callable_tools]
        engine, policy = self.chat.server.backend.engine, self.chat.policy
        return Reply(
            self.id,
            engine,
            prompt_end=self.chat.prompt_end,
            prefix=self.chat.prefix,
            functions=Functions(functions) if functions else None,
            strict_calls=self.request.strict_tool_calls,
            marker=policy.marker if self.request.runs_code else None,
            logprobs=LOGPROBS in (self.request.include or ()),
            seal=self._seal if SEALED in (self.request.include or ()) else None,
        )

    def _seal(self, text: str) -> str:
        return self.chat.server.seal.close(text, self.owner)


async def prepare_response(
    server: Server, store: ResponseStore, request: ResponseRequest, *, response_id: str, owner: str
) -> ResponseJob:
    """The job for ``request``.

    Raises:
        ApiError: what is named does not exist, is above a ceiling, does not fit or can't be honoured.
    """
    _check(request)
    backend = server.backend
    conversation = Conversation(backend.engine.tokenizer, backend.policy)
    if request.previous_response_id is not None:
        await recall(conversation, store, request.previous_response_id, owner)
    items = [_opened(item, server.seal, owner) for item in await resolved(request.input, store, owner)]
    conversation.add(await with_stored_replies(items, store, owner))
    chat = await _fitting(server, request, conversation)
    # The sandbox sees flushes of this id; so do traces.
    return ResponseJob(response_id, owner, request, items, replace(chat, id=response_id))


def _opened(item: InputItem, seal: Seal, owner: str) -> InputItem:
    """A sealed thought with its text; one that can't be opened is what the client sends beside the seal."""
    if not isinstance(item, Reasoning) or not item.encrypted_content:
        return item
    if (text := seal.open(item.encrypted_content, owner)) is None:
        report("input.encrypted_content")
        return item
    return item.model_copy(update={"content": [ReasoningText(text=text)]})


def _check(request: ResponseRequest) -> None:
    if request.runs_code and request.functions:
        raise _refused("tools", "code_interpreter and functions can't be joined: both calls begin alike")
    if request.tool_choice == "required" and not request.functions:
        if not request.runs_code:
            raise _refused("tool_choice", "there is no tool in 'tools' that could be called")
        raise _refused("tool_choice", "the model decides itself when code runs; it can't be made to")
    if not request.runs_code and request.deferral is not None:
        raise _refused(
            "deferral", "it says how code runs, and there is no code_interpreter in 'tools' to use"
        )
    choice = request.tool_choice
    if isinstance(choice, FunctionChoice) and choice.name not in {tool.name for tool in request.functions}:
        raise _refused("tool_choice.name", f"there is no function {choice.name!r} in 'tools'")


def _refused(param: str, why: str) -> ApiError:
    return ApiError(400, f"'{param}': {why}.", param=param, code="unsupported_parameter")


async def _fitting(server: Server, request: ResponseRequest, conversation: Conversation) -> ChatJob:
    """The chat job; with ``truncation: auto`` for as much of the conversation's end as fits."""
    messages = conversation.messages
    try:
        return await _chat_job(server, request, conversation, 0)
    except ApiError as error:
        if request.truncation != "auto" or error.code != "context_length_exceeded":
            raise
        too_long = error
    # The fewest messages that must go: found by halves, since each try renders the whole prompt.
    few, many = 1, len(messages) - 1
    job: ChatJob | None = None
    while few <= many:
        half = (few + many) // 2
        try:
            job = await _chat_job(server, request, conversation, _whole_from(messages, half))
        except ApiError as error:
            if error.code != "context_length_exceeded":
                raise
            few = half + 1
        else:
            many = half - 1
    if job is None:
        raise too_long
    return job


def _whole_from(messages: list[Json], start: int) -> int:
    """Return the first index from ``start`` that leaves no answer to a call that was cut away."""
    later = range(start, len(messages))
    return next((index for index in later if messages[index]["role"] != "tool"), len(messages))


async def _chat_job(
    server: Server, request: ResponseRequest, conversation: Conversation, start: int
) -> ChatJob:
    """Return the job for the conversation from message ``start`` on."""
    messages = conversation.messages[start:]
    first: list[Json] = [{"role": "system", "content": request.instructions}] if request.instructions else []
    moved = len(first) - start
    proven = {index + moved: ids for index, ids in conversation.proven.items() if index >= start}
    try:
        fields = _chat_fields(request, [*first, *messages])
        fields["deferral"] = {"enabled": request.runs_code, **_code_options(server, request)}
        with unreported():
            chat = ChatRequest.model_validate(fields)
    except ValidationError as error:
        what = error.errors()[0]
        raise _renamed(complaint(what, what["loc"], fields)) from None
    try:
        return await prepare(server, chat, proven)
    except ApiError as error:
        raise _renamed(error) from None


def _renamed(error: ApiError) -> ApiError:
    """An error of the chat request by the names that fields have here."""
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
    if request.form.to_response() != TextOptions().to_response():
        fields["response_format"] = request.form.as_response_format()
    if request.functions and request.tool_choice != "none":
        keep = {"name", "description", "parameters", "strict"}
        fields["tools"] = [
            {"type": "function", "function": tool.model_dump(include=keep, exclude_none=True)}
            for tool in request.functions
        ]
        choice = request.tool_choice
        if isinstance(choice, FunctionChoice):
            fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        else:
            fields["tool_choice"] = choice
    return fields


def _code_options(server: Server, request: ResponseRequest) -> Json:
    if not request.runs_code:
        return {}
    options = {} if request.deferral is None else request.deferral.model_dump(exclude_none=True)
    if request.max_tool_calls is not None:
        # A turn for each call, and the last one, which runs nothing; never more than there are anyway.
        most = options.get("max_turns") or server.settings.max_turns or server.backend.policy.max_turns
        options["max_turns"] = min(request.max_tool_calls + 1, most)
    return options
