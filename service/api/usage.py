"""Routes that report use: ``GET /v1/usage`` for the calling key, ``GET /admin/usage`` for all keys.

Pages, buckets and results have the fields of OpenAI's ``/v1/organization/usage/completions``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from service.api.auth import ADMIN, require_admin
from service.api.errors import ApiError
from service.api.limits import Quotas
from service.api.state import CurrentServer, Owner
from service.common.json import Json, JsonResponse
from service.store.usage import DAY_S, HOUR_S, UsageResult

router = APIRouter(prefix="/v1/usage", tags=["Usage"])
admin_router = APIRouter(prefix="/admin/usage", tags=["Admin"], dependencies=[Depends(require_admin)])

_WIDTHS_S: Final = {"1h": HOUR_S, "1d": DAY_S}
_DEFAULT_BUCKETS: Final = {"1h": 24, "1d": 7}
_MAX_BUCKETS: Final = {"1h": 168, "1d": 31}
_PAGE: Final = "page_"
_KEY_ID: Final = "sha256:"


class UsageAmounts(BaseModel):
    """One result of a bucket. A field is null if the query does not group by it."""

    object: Literal["organization.usage.completions.result"]
    input_tokens: int
    output_tokens: int
    """Tokens that models wrote, and tokens that were added to their replies, such as the output of code."""
    num_model_requests: int
    sandbox_seconds: float
    """Seconds that code ran."""
    api_key_id: str | None
    """SHA-256 of the key, as in the key file."""
    api_key_name: str | None
    """Name of the key; null also if the server does not know the key any more."""
    model: str | None


class UsageBucket(BaseModel):
    """Use in a span of time. Times are Unix seconds."""

    object: Literal["bucket"]
    start_time: int
    end_time: int
    results: list[UsageAmounts]


class QuotaObject(BaseModel):
    """A quota of the calling key."""

    name: str
    limit: float
    used: float
    resets_at: int | None
    """Unix time at which the use starts from zero again; null for stored bytes."""


class UsagePage(BaseModel):
    """Buckets from the oldest to the newest."""

    object: Literal["page"]
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None
    """Value of ``page`` for the next buckets."""


class KeyUsagePage(UsagePage):
    """Use of one key, and its quotas."""

    quotas: list[QuotaObject]
    stored_bytes: int
    """Bytes of files, responses and replies that are stored now."""


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Query parameters of both routes; see `usage_query`."""

    start: int | None
    end: int | None
    width: Literal["1h", "1d"]
    limit: int | None
    page: str | None
    group_by: list[str]
    models: list[str]
    owners: list[str]


_Groups = list[Literal["model", "api_key_id"]]


async def usage_query(
    start_time: Annotated[int | None, Query(ge=0, le=2**40)] = None,
    end_time: Annotated[int | None, Query(ge=1, le=2**40)] = None,
    bucket_width: Literal["1h", "1d"] = "1d",
    limit: Annotated[int | None, Query(ge=1)] = None,
    page: Annotated[str | None, Query(pattern="^page_[0-9]{1,13}$")] = None,
    group_by: Annotated[_Groups | None, Query()] = None,
    models: Annotated[list[str] | None, Query()] = None,
    api_key_ids: Annotated[list[str] | None, Query()] = None,
    more_groups: Annotated[_Groups | None, Query(alias="group_by[]", include_in_schema=False)] = None,
    more_models: Annotated[list[str] | None, Query(alias="models[]", include_in_schema=False)] = None,
    more_ids: Annotated[list[str] | None, Query(alias="api_key_ids[]", include_in_schema=False)] = None,
) -> UsageQuery:
    """Return the query parameters. Lists are sent as ``models=a`` or, by OpenAI's SDKs, as ``models[]=a``."""
    return UsageQuery(
        start_time,
        end_time,
        bucket_width,
        limit,
        page,
        group_by=[*(group_by or ()), *(more_groups or ())],
        models=[*(models or ()), *(more_models or ())],
        owners=[key.removeprefix(_KEY_ID) for key in (*(api_key_ids or ()), *(more_ids or ()))],
    )


CurrentQuery = Annotated[UsageQuery, Depends(usage_query)]


@router.get("", response_class=JsonResponse, responses={200: {"model": KeyUsagePage}})
async def retrieve_usage(server: CurrentServer, owner: Owner, query: CurrentQuery) -> Response:
    """Return the use of the calling key in buckets of time, and its quotas.

    ``start_time`` is rounded down to a bucket and defaults to the last ``limit`` buckets, ``end_time`` is
    exclusive and defaults to now. A page has up to 31 days or 168 hours (default: 7 or 24).
    """
    if set(query.owners) - {owner}:
        message = f"A key sees its own use only. Keys of scope '{ADMIN}' see all of it at GET /admin/usage."
        raise ApiError(403, message, param="api_key_ids", code="missing_scope")
    page = await _page(server.quotas, query, [owner])
    states = await server.quotas.states(owner)
    page["quotas"] = [
        {"name": state.name, "limit": state.limit, "used": round(state.used, 3), "resets_at": state.resets_at}
        for state in states
    ]
    page["stored_bytes"] = await server.quotas.usage.stored_bytes(owner)
    return JsonResponse(page)


@admin_router.get("", response_class=JsonResponse, responses={200: {"model": UsagePage}})
async def retrieve_usage_of_all_keys(server: CurrentServer, query: CurrentQuery) -> Response:
    """Return the use of all keys, or of those with the ids ``sha256:HEX``, in buckets of time."""
    return JsonResponse(await _page(server.quotas, query, query.owners or None))


async def _page(quotas: Quotas, query: UsageQuery, owners: list[str] | None) -> Json:
    """Return one page of buckets.

    Raises:
        ApiError: 400 for an invalid range or limit.
    """
    width_s, most = _WIDTHS_S[query.width], _MAX_BUCKETS[query.width]
    limit = query.limit or _DEFAULT_BUCKETS[query.width]
    if limit > most:
        message = f"'limit': at most {most} buckets of {query.width} fit on a page."
        raise ApiError(400, message, param="limit", code="invalid_value")
    end = int(quotas.usage.clock()) + 1 if query.end is None else query.end
    start = (end - 1) // width_s * width_s - (limit - 1) * width_s if query.start is None else query.start
    if query.page is not None:
        start = int(query.page.removeprefix(_PAGE))
    if start >= end:
        message = "'start_time' must be before 'end_time' and in the past."
        raise ApiError(400, message, param="start_time", code="invalid_value")
    start = start // width_s * width_s
    last = start + limit * width_s
    results = await quotas.usage.results(
        start,
        min(last, end),
        width_s=width_s,
        owners=owners,
        models=query.models or None,
        by_owner="api_key_id" in query.group_by,
        by_model="model" in query.group_by,
    )
    data = [
        {
            "object": "bucket",
            "start_time": begin,
            "end_time": begin + width_s,
            "results": [_amounts(quotas, result) for result in results if result.start == begin],
        }
        for begin in range(start, min(last, end), width_s)
    ]
    has_more = last < end
    next_page = f"{_PAGE}{last}" if has_more else None
    return {"object": "page", "data": data, "has_more": has_more, "next_page": next_page}


def _amounts(quotas: Quotas, result: UsageResult) -> Json:
    owner, used = result.owner, result.used
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": used.input_tokens,
        "output_tokens": used.output_tokens,
        "num_model_requests": used.requests,
        "sandbox_seconds": round(used.sandbox_seconds, 3),
        "api_key_id": f"{_KEY_ID}{owner}" if owner else None,
        "api_key_name": quotas.names.get(owner or ""),
        "model": result.model or None,
    }
