"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Final

from fastapi import APIRouter, Request, Response

from service.api import sse
from service.api.chat.history import store_reply
from service.api.chat.suspension import CurrentSuspensions, Suspensions
from service.api.files.choice import CurrentContainers
from service.api.messages.output import MessageBuilder
from service.api.messages.prepare import (
    PreparedMessage,
    continue_message,
    count_tokens,
    message_container,
    prepare_message,
)
from service.api.messages.request import CountTokensRequest, MessagesRequest
from service.api.messages.resume import find_suspended
from service.api.messages.schemas import MESSAGE, TOKEN_COUNT
from service.api.sse import StreamForm, until_disconnect
from service.api.state import CurrentReplies, CurrentServer, Owner
from service.api.telemetry.tracing import Attributes
from service.common.json import Json, JsonResponse
from service.engines.checkpoint import DEMO_WITHOUT_DEFERRAL
from service.episode.events import Finished, FlushSuspended
from service.store.replies import ReplyStore

router = APIRouter(prefix="/v1/messages", tags=["Messages"])
_PING: Final = sse.event({"type": "ping"})
STREAM: Final = StreamForm(_PING, lambda error, request_id: sse.event(error.anthropic_body(request_id)), b"")
"""Anthropic's stream. Its last event is ``message_stop`` or ``error``."""


@router.post("", response_class=JsonResponse, responses=MESSAGE)
async def create_message(
    body: MessagesRequest,
    request: Request,
    server: CurrentServer,
    replies: CurrentReplies,
    containers: CurrentContainers,
    suspensions: CurrentSuspensions,
    owner: Owner,
) -> Response:
    """Answer a conversation in Anthropic's form. Code runs only with the tool ``code_execution``."""
    found = find_suspended(suspensions, body, owner)
    if found is not None:
        prepared = continue_message(*found, body, owner=owner)
    else:
        container = await message_container(containers, body, owner)
        prepared = await prepare_message(server, replies, body, container, owner=owner)
    if body.stream:
        stream = _stream(prepared, replies, suspensions)
        return sse.EventStream(stream, server.settings.keep_alive_s, STREAM)
    return JsonResponse(await until_disconnect(request.receive, _complete(prepared, replies, suspensions)))


@router.post("/count_tokens", response_class=JsonResponse, responses=TOKEN_COUNT)
async def count_message_tokens(
    body: CountTokensRequest, server: CurrentServer, replies: CurrentReplies, owner: Owner
) -> Json:
    """Return the number of tokens of a request's prompt."""
    return {"input_tokens": await count_tokens(server, replies, body, owner=owner)}


async def _complete(prepared: PreparedMessage, store: ReplyStore, suspensions: Suspensions) -> Json:
    builder = prepared.builder()
    async with aclosing(_events(prepared, builder, store, suspensions)) as events:
        async for _ in events:
            pass
    message = builder.message()
    if prepared.chat.server.notice is not None and not prepared.request.runs_code:
        message["notice"] = DEMO_WITHOUT_DEFERRAL
    return message


async def _stream(
    prepared: PreparedMessage, store: ReplyStore, suspensions: Suspensions
) -> AsyncGenerator[bytes, None]:
    async with aclosing(_events(prepared, prepared.builder(), store, suspensions)) as events:
        async for event in events:
            yield sse.event(event)


async def _events(
    prepared: PreparedMessage, builder: MessageBuilder, store: ReplyStore, suspensions: Suspensions
) -> AsyncGenerator[Json, None]:
    """Run the episode until it ends or its code waits for the client, and yield all events.

    With a JSON schema the first events wait for the engine, which may reject the schema.
    """
    chat, live = prepared.chat, prepared.live
    running = chat.server.run_episodes(
        partial(live.streams, prepared.answers, prepared.id),
        count=1,
        operation="messages",
        model=prepared.request.model,
        owner=prepared.owner,
        prompt_tokens=0 if live.is_continued else len(chat.prompt_ids),
        runs_code=chat.request.deferred,
        attributes=_attributes(prepared),
        schema_param=prepared.schema_param,
    )
    async with live.acquired(suspensions, prepared.id), running as episode:
        first: list[Json] = [builder.start(), {"type": "ping"}]
        if prepared.schema_param is None:
            for event in first:
                yield event
            first = []
        async for _, episode_event in episode:
            events = [*first, *builder.add(episode_event)]
            if isinstance(episode_event, FlushSuspended):  # before the client can send the results
                live.blocks += builder.content
                await suspensions.add(live)
                builder.waits_s = suspensions.seconds_left(live)
            for event in events:
                yield event
            first = []
            reply = builder.reply
            has_calls = chat.request.deferred and reply.finished_calls
            if isinstance(episode_event, Finished) and (reply.executed or has_calls):
                # Before the client can send the reply back.
                key = prepared.reply_key([*live.blocks, *builder.content])
                await store_reply(store, prepared.owner, key, reply.ids, chat.server.engine.tokenizer)
    for event in builder.end():
        yield event


def _attributes(prepared: PreparedMessage) -> Attributes:
    """Return the span's attributes that come from the client."""
    metadata = prepared.request.metadata
    attributes: dict[str, str | bool] = {
        "ih_grpo.request.id": prepared.id,
        "ih_grpo.deferred": prepared.request.runs_code,
    }
    if metadata is not None and metadata.user_id is not None:
        attributes["enduser.id"] = metadata.user_id
    return attributes
