"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial

from fastapi import APIRouter, Request, Response

from service.api import sse
from service.api.chat.choice_builder import ChoiceBuilder, ChoiceDelta, chat_usage
from service.api.chat.history import find_replies, store_reply
from service.api.chat.prepare import PreparedChat, prepare
from service.api.chat.request import ChatRequest
from service.api.errors import ApiError
from service.api.files.choice import CurrentContainers, choose_container
from service.api.files.containers import Containers, ContainerUse
from service.api.files.inputs import file_part
from service.api.schemas import COMPLETION
from service.api.sse import until_disconnect
from service.api.state import CurrentReplies, CurrentServer, Owner
from service.api.telemetry.tracing import Attributes
from service.api.tools.definitions import AutoContainer, CodeInterpreterTool
from service.api.tools.history import reply_key
from service.api.validation import report_ignored
from service.common.json import Json, JsonResponse, dumps
from service.engines.checkpoint import DEMO_WITHOUT_DEFERRAL
from service.episode.accumulator import usage_of
from service.episode.tool_parser import CallError
from service.store.replies import ReplyStore

router = APIRouter(tags=["Chat"])
_Store = Callable[[PreparedChat, Sequence[ChoiceBuilder]], Awaitable[None]]


@router.post("/v1/chat/completions", response_class=JsonResponse, responses=COMPLETION)
async def create_chat_completion(
    body: ChatRequest,
    request: Request,
    server: CurrentServer,
    replies: CurrentReplies,
    containers: CurrentContainers,
    owner: Owner,
) -> Response:
    """Answer a conversation. Code that the model writes runs in a sandbox when the model asks for it."""
    container = await _container(containers, body, owner)
    chat = await prepare(server, body, await find_replies(replies, owner, body), container)
    for name in chat.ignored:
        report_ignored(name)
    store = partial(_store_choices, replies, owner)
    if body.stream:
        return sse.EventStream(_stream(chat, owner, store), server.settings.keep_alive_s)
    return JsonResponse(await until_disconnect(request.receive, _complete(chat, owner, store)))


async def _container(containers: Containers, request: ChatRequest, owner: str) -> ContainerUse | None:
    """Return the container of the request if it has files or asks for one.

    Raises:
        ApiError: 400 if files or a container can't be used here, 404 for an unknown file or container.
    """
    parts = [
        file_part(part, f"messages[{index}].{where}")
        for index, message in enumerate(request.messages)
        for where, part in message.file_parts
    ]
    choice = request.deferral.container
    choice_param = "deferral.container"
    for index, tool in enumerate(request.tools or ()):
        if choice is None and isinstance(tool, CodeInterpreterTool) and tool.container != AutoContainer():
            choice, choice_param = tool.container, f"tools[{index}].container"
    if choice is None and not parts:
        return None
    param = choice_param if choice is not None else parts[0].param
    if not request.deferred:
        raise ApiError(
            400,
            f"'{param}': files and containers need code execution, which is off in this request.",
            param=param,
            code="unsupported_parameter",
        )
    if request.choices > 1:
        raise ApiError(
            400,
            f"'{param}': it can't be combined with 'n' above 1.",
            param=param,
            code="unsupported_parameter",
        )
    return await choose_container(
        containers,
        choice,
        parts,
        owner,
        param=choice_param,
        on_expired=request.deferral.on_expired,
        figures=request.deferral.figures,
    )


async def _store_choices(
    store: ReplyStore, owner: str, chat: PreparedChat, choices: Sequence[ChoiceBuilder]
) -> None:
    for choice in choices:
        calls = choice.calls if chat.request.deferred else []
        if choice.reply.executed or calls:
            key = reply_key(choice.content, calls)
            await store_reply(store, owner, key, choice.reply.ids, chat.server.engine.tokenizer)


async def _complete(chat: PreparedChat, owner: str, store: _Store) -> Json:
    choices = _choices(chat)
    async with aclosing(_deltas(chat, owner, choices)) as deltas:
        async for _ in deltas:
            pass
    await store(chat, choices)
    completion: Json = {
        **_head(chat, "chat.completion"),
        "choices": [choice.choice() for choice in choices],
        "usage": _usage(chat, choices),
    }
    if chat.server.notice is not None and not chat.request.deferred:
        completion["notice"] = DEMO_WITHOUT_DEFERRAL
    if chat.container is not None and chat.container.notice is not None:
        completion["notice"] = chat.container.notice
    return completion


async def _stream(chat: PreparedChat, owner: str, store: _Store) -> AsyncGenerator[bytes, None]:
    choices = _choices(chat)
    options = chat.request.stream_options
    with_usage = options is not None and options.include_usage
    head = _head(chat, "chat.completion.chunk") | ({"usage": None} if with_usage else {})
    start = sse.DATA + dumps({**head, "choices": []}).removesuffix(b"]}")  # the same in every chunk
    async with aclosing(_deltas(chat, owner, choices)) as deltas:
        async for choice, delta in deltas:
            if delta.finish_reason is not None:
                await store(chat, [choice])  # before the client can send the reply back
            yield start + _chunk_choice(choice.index, delta) + b"]}" + sse.END
    if with_usage:
        yield sse.data({**head, "choices": [], "usage": _usage(chat, choices)})


def _chunk_choice(index: int, delta: ChoiceDelta) -> bytes:
    if (text := delta.only_content) is not None:  # nearly all chunks; a fifth of the encoder's time
        added = b'{"index":%d,"delta":{"content":%b}' % (index, dumps(text))
        return added + b',"logprobs":null,"finish_reason":null}'
    rest = {"logprobs": delta.logprobs, "finish_reason": delta.finish_reason}
    return dumps({"index": index, "delta": delta.delta, **rest})


async def _deltas(
    chat: PreparedChat, owner: str, choices: list[ChoiceBuilder]
) -> AsyncGenerator[tuple[ChoiceBuilder, ChoiceDelta], None]:
    """Run the episodes and yield the delta of each event, after a first delta with the role.

    With a JSON schema the role waits for the first event, because the engine may reject the schema.
    """
    running = chat.server.run_episodes(
        chat.episodes,
        count=len(choices),
        operation="chat",
        model=chat.request.model,
        owner=owner,
        prompt_tokens=len(chat.prompt_ids),
        runs_code=chat.request.deferred,
        attributes=_attributes(chat),
        schema_param=chat.schema_param,
        cleanup=chat.close,
    )
    async with chat.held_container(), running as events:
        roles = [(choice, ChoiceDelta({"role": "assistant", "content": ""})) for choice in choices]
        if chat.schema_param is None:
            for role in roles:
                yield role
            roles = []
        async for index, event in events:
            for role in roles:
                yield role
            roles = []
            try:
                delta = choices[index].add(event)
            except CallError as error:
                details = {"failed_generation": error.written}
                raise ApiError(400, str(error), code="tool_use_failed", details=details) from None
            if delta is not None:
                yield choices[index], delta


def _choices(chat: PreparedChat) -> list[ChoiceBuilder]:
    request = chat.request
    return [
        ChoiceBuilder(
            index,
            chat.reply(strict_calls=request.strict_tool_calls),
            chat.runner.engine.tokenizer if request.logprobs else None,
            request.custom_names,
            container=chat.container,
        )
        for index in range(request.choices)
    ]


def _usage(chat: PreparedChat, choices: list[ChoiceBuilder]) -> Json:
    return chat_usage(usage_of(len(chat.prompt_ids), [choice.reply for choice in choices]))


def _attributes(chat: PreparedChat) -> Attributes:
    """Return the span's attributes that come from the client."""
    request = chat.request
    attributes = {f"ih_grpo.metadata.{name}": value for name, value in (request.metadata or {}).items()}
    if request.user is not None:
        attributes["enduser.id"] = request.user
    return {"ih_grpo.request.id": chat.id, "ih_grpo.deferred": request.deferred, **attributes}


def _head(chat: PreparedChat, kind: str) -> Json:
    return {"id": chat.id, "object": kind, "created": int(time.time()), "model": chat.request.model}
