"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from service.api import sse
from service.api.chat_job import ChatJob, prepare
from service.api.chat_reply import Delta, Reply, usage
from service.api.chat_request import ChatRequest
from service.api.disconnect import until_disconnect
from service.api.merge import merged
from service.api.server import CurrentServer
from service.api.wire import Json, JsonResponse
from service.events import Sampled

router = APIRouter(tags=["Chat"])


@router.post("/v1/chat/completions", response_class=JsonResponse)
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
    async with aclosing(_events(job, replies)) as deltas:
        async for reply, delta in deltas:
            choice = {
                "index": reply.index,
                "delta": delta.delta,
                "logprobs": delta.logprobs,
                "finish_reason": delta.finish_reason,
            }
            yield sse.data({**head, "choices": [choice]})
    if with_usage:
        yield sse.data({**head, "choices": [], "usage": usage(len(job.prompt_ids), replies)})


async def _events(job: ChatJob, replies: list[Reply]) -> AsyncGenerator[tuple[Reply, Delta], None]:
    """What each event adds, the role first; holds the request's places for as long as it runs."""
    server, arrived, first = job.server, time.monotonic(), True
    async with server.admission.admit(len(replies)):
        server.metrics.prompt_tokens.inc(len(job.prompt_ids))
        for reply in replies:
            yield reply, Delta({"role": "assistant", "content": ""})
        async with aclosing(merged(job.episodes())) as events:
            async for index, event in events:
                if first and isinstance(event, Sampled):
                    server.metrics.first_token_s.observe(time.monotonic() - arrived)
                    first = False
                server.metrics.observe(event)
                if (delta := replies[index].take(event)) is not None:
                    yield replies[index], delta


def _replies(job: ChatJob) -> list[Reply]:
    request, engine = job.request, job.server.backend.engine
    thinking = request.chat_template_kwargs.enable_thinking
    return [
        Reply(index, engine, logprobs=bool(request.logprobs), thinking=thinking)
        for index in range(request.choices)
    ]


def _head(job: ChatJob, kind: str) -> Json:
    return {"id": job.id, "object": kind, "created": int(time.time()), "model": job.request.model}
