"""API keys, as pure ASGI middleware."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import ApiError

OPEN_PATHS: Final = frozenset({"/health"})


class ApiKeys:
    """Lets a request pass that carries one of ``keys`` as a bearer token; any request if there are none."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        # Only hashes are kept. They have one length, so the comparison takes the same time for every key.
        self._hashes = tuple(_hash(key) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._hashes or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_known(key.strip()):
            await self._app(scope, receive, send)
            return
        wrong = "Incorrect API key provided." if key else "No API key: send 'Authorization: Bearer KEY'."
        await ApiError(401, wrong).response()(scope, receive, send)

    def _is_known(self, key: str) -> bool:
        hashed = _hash(key)
        # A sum, not any(): every key is compared, whichever matches.
        return sum(hmac.compare_digest(hashed, known) for known in self._hashes) > 0


def _hash(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogatepass")).digest()
