"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from service.api import sse
from service.api.chat.job import ChatJob, prepare
from service.api.chat.reply import Delta, Reply, usage
from service.api.chat.request import ChatRequest
from service.api.chat.text import MessageText
from service.api.disconnect import until_disconnect
from service.api.documented import COMPLETION
from service.api.errors import ApiError
from service.api.functions.declared import Functions
from service.api.functions.hermes import CallError
from service.api.run import run_episodes
from service.api.server import CurrentServer
from service.api.telemetry.traces import Attributes
from service.api.wire import Json, JsonResponse, dumps

router = APIRouter(tags=["Chat"])


@router.post("/v1/chat/completions", response_class=JsonResponse, responses=COMPLETION)
async def create_chat_completion(body: ChatRequest, request: Request, server: CurrentServer) -> Response:
    """Answer a conversation. Code that the model writes runs in a sandbox when the model asks for it."""
    job = await prepare(server, body)
    if body.stream:
        return sse.EventStream(_stream(job), server.settings.keep_alive_s)
    return JsonResponse(await until_disconnect(request.receive, _complete(job)))


async def _complete(job: ChatJob) -> Json:
    replies = _replies(job)
    async with aclosing(_events(job, replies)) as deltas:
        async for _ in deltas:
            pass
    return {
        **_head(job, "chat.completion"),
        "choices": [reply.choice() for reply in replies],
        "usage": usage(len(job.prompt_ids), replies),
    }


async def _stream(job: ChatJob) -> AsyncGenerator[bytes, None]:
    replies = _replies(job)
    options = job.request.stream_options
    with_usage = options is not None and options.include_usage
    head = _head(job, "chat.completion.chunk") | ({"usage": None} if with_usage else {})
    start = sse.DATA + dumps({**head, "choices": []}).removesuffix(b"]}")  # the same for every token
    async with aclosing(_events(job, replies)) as deltas:
        async for reply, delta in deltas:
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
