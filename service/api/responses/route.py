"""Routes of the Responses API: create, retrieve, cancel and delete responses, and list their input items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api import sse
from service.api.chat.approvals import ApprovalDecision, decide
from service.api.chat.suspension import CurrentSuspensions
from service.api.errors import ApiError
from service.api.files.choice import CurrentContainers
from service.api.responses.items import is_response_id, new_response_id
from service.api.responses.prepare import count_input_tokens, prepare_response
from service.api.responses.registry import CurrentResponses, Responses
from service.api.responses.request import InputTokensRequest, ResponseRequest
from service.api.responses.resource import Resource, cancelled, shown
from service.api.responses.run import ResponseRun, Stream
from service.api.sse import until_disconnect
from service.api.state import CurrentServer, Owner
from service.common.json import Json, JsonResponse
from service.store.responses import StoredResponse

router = APIRouter(tags=["Responses"])


@router.post("/v1/responses", response_class=JsonResponse)
async def create_response(
    body: ResponseRequest,
    request: Request,
    server: CurrentServer,
    responses: CurrentResponses,
    containers: CurrentContainers,
    suspensions: CurrentSuspensions,
    owner: Owner,
) -> Response:
    """Create a response. With the tool ``code_interpreter``, the model may run code in a sandbox."""
    if body.background:
        responses.background.check_room()
        # Again when it is admitted; but a client must get the error here, not a failed response.
        await server.quotas.check(owner, tokens=True, code=body.runs_code, storage=True)
    prepared = await prepare_response(
        server,
        responses.store,
        body,
        response_id=new_response_id(),
        owner=owner,
        containers=containers,
        suspensions=suspensions,
        base_url=str(request.base_url),
    )
    include: Collection[str] = body.include or ()
    status = "queued" if body.background else "in_progress"
    run = ResponseRun(prepared, status, responses.store_ended, suspensions)
    if body.background:
        await responses.store.put(responses.record(run))
        responses.background.start(run)
        if not body.stream:
            return JsonResponse(shown(run.resource.body(), include))
        events = responses.background.read(prepared.id, owner, -1)
    elif body.stream:
        events = _cancelled_on_disconnect(run, run.safe_events())
    else:
        return JsonResponse(shown(await until_disconnect(request.receive, _complete(run)), include))
    return sse.EventStream(as_sse(events, include), server.settings.keep_alive_s)


@router.post("/v1/responses/input_tokens", response_class=JsonResponse)
async def count_response_tokens(
    body: InputTokensRequest, server: CurrentServer, responses: CurrentResponses, owner: Owner
) -> Json:
    """Return the number of tokens of a request's prompt."""
    request = body if body.model else body.model_copy(update={"model": server.model_name})
    count = await count_input_tokens(server, responses.store, request, owner=owner)
    return {"object": "response.input_tokens", "input_tokens": count}


@router.api_route(
    "/v1/responses/compact", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
)
async def compact_response(request: Request) -> None:
    """Reject the request. Without this route its path would be that of a response."""
    raise ApiError(
        404,
        f"Unknown URL: {request.method} /v1/responses/compact. This server does not compact conversations. "
        "With 'truncation': 'auto', /v1/responses drops the oldest messages.",
        code="unknown_url",
    )


async def _complete(run: ResponseRun) -> Json:
    async with aclosing(_cancelled_on_disconnect(run, run.events())) as events:
        async for _ in events:
            pass
    return run.resource.body()


async def _cancelled_on_disconnect(run: ResponseRun, events: Stream) -> Stream:
    """Yield ``events``. If the client disconnects before the last one, store the response as cancelled."""
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
    """Encode ``events`` for the client. With ``at_once`` the stream starts before the first event."""
    async with aclosing(events):
        if at_once:
            yield sse.KEEP_ALIVE
        async for event in events:
            yield sse.event(shown(event, include))


stored_router = APIRouter(prefix="/v1/responses/{response_id}", tags=["Responses"])


@stored_router.get("", response_class=JsonResponse)
async def retrieve_response(
    response_id: str,
    request: Request,
    server: CurrentServer,
    responses: CurrentResponses,
    owner: Owner,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=-1)] = None,
) -> Response:
    """Return the current response, or with ``stream`` its past and future events."""
    stored = await _find(responses, response_id, owner)
    include = _include(request)
    if not stream:
        return JsonResponse(shown(responses.background.body(response_id) or stored.body, include))
    if not stored.background:
        raise ApiError(
            400,
            "Only a response created with background=true can be streamed again.",
            param="stream",
            code="invalid_value",
        )
    after = -1 if starting_after is None else starting_after
    events = responses.background.read(response_id, owner, after)
    return sse.EventStream(as_sse(events, include, at_once=True), server.settings.keep_alive_s)


@stored_router.post("/cancel", response_class=JsonResponse)
async def cancel_response(
    response_id: str,
    request: Request,
    responses: CurrentResponses,
    suspensions: CurrentSuspensions,
    owner: Owner,
) -> Response:
    """Cancel a background response. A response that has ended stays as it is, but code of it that waits for
    outputs ends."""
    stored = await _find(responses, response_id, owner)
    if await suspensions.end(response_id, owner):
        return JsonResponse(shown(stored.body, _include(request)))
    if not stored.background:
        raise ApiError(
            400, "Only a response created with background=true can be cancelled.", code="invalid_value"
        )
    if stored.is_running:
        if not await responses.background.cancel(response_id):  # it runs on another server, which will notice
            await responses.store.change(response_id, status="cancelled", body=cancelled(stored.body))
        stored = await _find(responses, response_id, owner)
    return JsonResponse(shown(stored.body, _include(request)))


@stored_router.post("/approvals", response_class=JsonResponse)
async def decide_call(
    response_id: str, body: ApprovalDecision, suspensions: CurrentSuspensions, owner: Owner
) -> Json:
    """Approve or deny a call of a tool that code of the response wants to make, while the response runs."""
    return decide(suspensions, response_id, owner, body)


@stored_router.delete("")
async def delete_response(
    response_id: str, responses: CurrentResponses, suspensions: CurrentSuspensions, owner: Owner
) -> Json:
    """Delete a response, cancelling it first if it runs."""
    await _find(responses, response_id, owner)
    await suspensions.end(response_id, owner)
    await responses.background.cancel(response_id)
    await responses.store.delete(response_id, owner)
    return {"id": response_id, "object": "response", "deleted": True}


@stored_router.get("/input_items", response_class=JsonResponse)
async def list_input_items(
    response_id: str,
    request: Request,
    responses: CurrentResponses,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """List the input items of the response itself, page by page."""
    stored = await _find(responses, response_id, owner)
    items = stored.input if order == "asc" else stored.input[::-1]
    start = 0
    if after is not None:
        found = [index for index, item in enumerate(items) if item["id"] == after]
        if not found:
            raise ApiError(
                400, f"'after': this response has no item '{after}'.", param="after", code="invalid_value"
            )
        start = found[0] + 1
    page = shown({"output": items[start : start + limit]}, _include(request))["output"]
    assert isinstance(page, list)  # noqa: S101
    return JsonResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": start + limit < len(items),
        }
    )


async def _find(responses: Responses, response_id: str, owner: str) -> StoredResponse:
    stored = await responses.store.get(response_id, owner) if is_response_id(response_id) else None
    if stored is None:
        message = f"Response with id '{response_id}' not found."
        raise ApiError(404, message, param="response_id", code="response_not_found")
    return stored


def _include(request: Request) -> list[str]:
    # SDKs encode lists in different ways.
    query = request.query_params
    return [*query.getlist("include"), *query.getlist("include[]")]
