"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial

import structlog
from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from service.api import sse
from service.api.chat.choice_builder import Delta, MessageText, Reply, usage
from service.api.chat.prepare import ChatJob, prepare
from service.api.chat.request import ChatRequest
from service.api.errors import ApiError
from service.api.reasoning_parser import without_thought
from service.api.responses.registry import CurrentResponses, Owner
from service.api.run import run_episodes
from service.api.schemas import COMPLETION
from service.api.sse import until_disconnect
from service.api.state import CurrentServer
from service.api.telemetry.tracing import Attributes
from service.api.tools.definitions import Functions
from service.api.tools.parser import CallError
from service.common.json import Json, JsonResponse, dumps
from service.deferral.fences import FENCE
from service.engines.checkpoint import DEMO_WITHOUT_DEFERRAL
from service.store.replies import ReplyStore

router = APIRouter(tags=["Chat"])
_log = structlog.get_logger(__name__)
_Keep = Callable[[ChatJob, Sequence[Reply]], Awaitable[None]]


@router.post("/v1/chat/completions", response_class=JsonResponse, responses=COMPLETION)
async def create_chat_completion(
    body: ChatRequest, request: Request, server: CurrentServer, responses: CurrentResponses, owner: Owner
) -> Response:
    """Answer a conversation. Code that the model writes runs in a sandbox when the model asks for it."""
    job = await prepare(server, body, await _proven(responses.replies, owner, body))
    keep = partial(_keep, responses.replies, owner)
    if body.stream:
        return sse.EventStream(_stream(job, keep), server.settings.keep_alive_s)
    return JsonResponse(await until_disconnect(request.receive, _complete(job, keep)))


async def _proven(store: ReplyStore, owner: str, request: ChatRequest) -> dict[int, tuple[int, ...]]:
    """Return the ids of the messages that are this server's own replies, by index. A store that fails proves
    none."""
    if not request.deferred:
        return {}
    contents = {
        index: message.content
        for index, message in enumerate(request.messages)
        if message.role == "assistant" and message.content and FENCE in message.content
    }
    try:
        found = await store.find(owner, set(contents.values()))
    except (SQLAlchemyError, OSError):  # a driver raises OSError if it can't connect
        _log.exception("replies_not_found")
        return {}
    return {index: found[content] for index, content in contents.items() if content in found}


async def _keep(store: ReplyStore, owner: str, job: ChatJob, replies: Sequence[Reply]) -> None:
    """Keep the ids of the replies in which code ran. A store that fails costs later turns their proof, no
    more."""
    tokenizer = job.server.backend.engine.tokenizer
    for reply in replies:
        if not (reply.ran_code and (content := reply.message()["content"])):
            continue
        try:
            await store.put(owner, str(content), without_thought(reply.ids, tokenizer))
        except (SQLAlchemyError, OSError):
            _log.exception("reply_not_kept")


async def _complete(job: ChatJob, keep: _Keep) -> Json:
    replies = _replies(job)
    async with aclosing(_events(job, replies)) as deltas:
        async for _ in deltas:
            pass
    await keep(job, replies)
    completion: Json = {
        **_head(job, "chat.completion"),
        "choices": [reply.choice() for reply in replies],
        "usage": usage(len(job.prompt_ids), replies),
    }
    if job.server.notice is not None and not job.request.deferred:
        completion["notice"] = DEMO_WITHOUT_DEFERRAL
    return completion


async def _stream(job: ChatJob, keep: _Keep) -> AsyncGenerator[bytes, None]:
    replies = _replies(job)
    options = job.request.stream_options
    with_usage = options is not None and options.include_usage
    head = _head(job, "chat.completion.chunk") | ({"usage": None} if with_usage else {})
    start = sse.DATA + dumps({**head, "choices": []}).removesuffix(b"]}")  # the same for every token
    async with aclosing(_events(job, replies)) as deltas:
        async for reply, delta in deltas:
            if delta.finish_reason is not None:
                await keep(job, [reply])  # before the client can send it back
            yield start + _choice(reply.index, delta) + b"]}" + sse.END
    if with_usage:
        yield sse.data({**head, "choices": [], "usage": usage(len(job.prompt_ids), replies)})


def _choice(index: int, delta: Delta) -> bytes:
    if (text := delta.only_content) is not None:  # as in nearly all, and a fifth of the encoder's time
        added = b'{"index":%d,"delta":{"content":%b}' % (index, dumps(text))
        return added + b',"logprobs":null,"finish_reason":null}'
    rest = {"logprobs": delta.logprobs, "finish_reason": delta.finish_reason}
    return dumps({"index": index, "delta": delta.delta, **rest})


async def _events(job: ChatJob, replies: list[Reply]) -> AsyncGenerator[tuple[Reply, Delta], None]:
    """What each event adds, the role first; holds the request's places for as long as it runs.

    Where there is a schema the role waits for the first event: the engine may reject the schema before.
    """
    running = run_episodes(
        job.server,
        job.episodes,
        count=len(replies),
        operation="chat",
        model=job.request.model,
        prompt_tokens=len(job.prompt_ids),
        attributes=_attributes(job),
        schema_param=job.schema_param,
    )
    async with running as events:
        heads = [(reply, Delta({"role": "assistant", "content": ""})) for reply in replies]
        if job.schema_param is None:
            for head in heads:
                yield head
            heads = []
        async for index, event in events:
            for head in heads:
                yield head
            heads = []
            try:
                delta = replies[index].take(event)
            except CallError as error:
                details = {"failed_generation": error.written}
                raise ApiError(400, str(error), code="tool_use_failed", details=details) from None
            if delta is not None:
                yield replies[index], delta


def _replies(job: ChatJob) -> list[Reply]:
    request, engine = job.request, job.backend.engine
    tools = [tool.function for tool in request.callable_tools]
    return [
        Reply(
            index,
            engine,
            MessageText(
                job.prompt_end,
                job.prefix,
                Functions(tools) if tools else None,
                strict=request.strict_tool_calls,
            ),
            logprobs=bool(request.logprobs),
            thinks=job.thinks,
        )
        for index in range(request.choices)
    ]


def _attributes(job: ChatJob) -> Attributes:
    """What the client says of the request, on its span."""
    request = job.request
    told = {f"ih_grpo.metadata.{name}": value for name, value in (request.metadata or {}).items()}
    if request.user is not None:
        told["enduser.id"] = request.user
    return {"ih_grpo.request.id": job.id, "ih_grpo.deferred": request.deferred, **told}


def _head(job: ChatJob, kind: str) -> Json:
    return {"id": job.id, "object": kind, "created": int(time.time()), "model": job.request.model}
