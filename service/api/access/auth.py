"""ASGI middleware that checks API keys, sent as a bearer token or in ``x-api-key`` or ``api-key``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog
from fastapi import Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import ApiError
from service.api_keys import ADMIN, ApiKey, find_key

BEARER: Final = HTTPBearer(auto_error=False, description="An API key, where the server has any.")
"""Tells the OpenAPI document of the keys; who may pass, the middleware decides."""
KEY_HEADERS: Final = ("x-api-key", "api-key")
OPEN_PATHS: Final = frozenset({"/health", "/ready", "/openapi.json"})
"""Need no key. The document describes the routes and holds nothing of this server's own."""


class ApiKeys:
    """Lets a request pass that carries one of ``keys`` or is for an open path; any request if there are none.

    The key is found again under ``scope["api_key"]``, and its name in every line of the log. Without one,
    although there are keys, ``scope["anonymous"]`` is true.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._keys = tuple(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys:
            await self._app(scope, receive, send)
            return
        presented = _presented(Headers(scope=scope))
        found = [key for secret in presented if (key := find_key(self._keys, secret)) is not None]
        if found:
            scope["api_key"] = found[0]
            structlog.contextvars.bind_contextvars(api_key=found[0].name)
        elif scope["path"] in OPEN_PATHS:
            scope["anonymous"] = True
        else:
            wrong = (
                "Incorrect API key provided."
                if presented
                else "No API key: send 'Authorization: Bearer KEY', 'x-api-key: KEY' or 'api-key: KEY'."
            )
            await ApiError(401, wrong).response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _presented(headers: Headers) -> list[str]:
    """The secrets that a request shows: OpenAI's header, Anthropic's, Azure's."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    secrets = [token if scheme.lower() == "bearer" else "", *(headers.get(name, "") for name in KEY_HEADERS)]
    return [secret.strip() for secret in secrets if secret.strip()]


async def require_admin(request: Request) -> None:
    """Let admin keys alone pass; where no key is asked for, nobody.

    Raises:
        ApiError: 403.
    """
    key: ApiKey | None = request.scope.get("api_key")
    if key is None or not key.is_admin:
        message = (
            f"This needs an API key of scope '{ADMIN}': the operator makes one with `ih-grpo key --admin`."
        )
        raise ApiError(403, message, code="missing_scope")
