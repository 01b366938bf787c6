"""``POST /v1/responses``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from service.api import sse
from service.api.disconnect import until_disconnect
from service.api.responses.ids import new_response_id
from service.api.responses.job import prepare_response
from service.api.responses.request import ResponseRequest
from service.api.responses.resource import Resource, shown
from service.api.responses.responses import CurrentResponses, Owner
from service.api.responses.run import Run, Stream
from service.api.server import CurrentServer
from service.api.wire import Json, JsonResponse

router = APIRouter(tags=["Responses"])


@router.post("/v1/responses", response_class=JsonResponse)
async def create_response(
    body: ResponseRequest, request: Request, server: CurrentServer, responses: CurrentResponses, owner: Owner
) -> Response:
    """Answer. With the tool ``code_interpreter``, code runs in a sandbox when the model asks for it."""
    if body.background:
        responses.background.check_room()
    job = await prepare_response(server, responses.store, body, response_id=new_response_id(), owner=owner)
    include: Collection[str] = body.include or ()
    run = Run(job, "queued" if body.background else "in_progress", responses.keep)
    if body.background:
        await responses.store.put(responses.record(run))
        responses.background.start(run)
        if not body.stream:
            return JsonResponse(shown(run.resource.body(), include))
        events = responses.background.read(job.id, owner, -1)
    elif body.stream:
        events = _attended(run, run.told())
    else:
        return JsonResponse(shown(await until_disconnect(request.receive, _complete(run)), include))
    return sse.EventStream(as_sse(events, include), server.settings.keep_alive_s)


async def _complete(run: Run) -> Json:
    async with aclosing(_attended(run, run.events())) as events:
        async for _ in events:
            pass
    return run.resource.body()


async def _attended(run: Run, events: Stream) -> Stream:
    """``events``; if the client leaves before the last, what there is so far is stored as cancelled."""
    try:
        async with aclosing(events):
            async for event in events:
                yield event
    except (asyncio.CancelledError, GeneratorExit):
        if run.is_running:
            await run.stop(Resource.cancel)
        raise


async def as_sse(
    events: Stream, include: Collection[str], *, at_once: bool = False
) -> AsyncGenerator[bytes, None]:
    """``events`` as a client gets them; with ``at_once`` the stream begins before there is any."""
    async with aclosing(events):
        if at_once:
            yield sse.KEEP_ALIVE
        async for event in events:
            yield f"event: {event['type']}\n".encode() + sse.data(shown(event, include))
