"""API keys: parsing, limits per key, and the middleware that checks them.

The server knows keys by their hash. Clients send them as a bearer token or in ``x-api-key`` or ``api-key``.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import structlog
from fastapi import Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import ApiError

_HASH: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_LIMITS: Final = {"rpm": "requests_per_minute", "concurrency": "concurrency"}
ADMIN: Final = "admin"
"""The scope of a key that may change the server itself; a key without a scope may use it."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. ``digest`` is the SHA-256 of it; a limit that is None is the server's own."""

    digest: bytes
    name: str
    """What logs and metrics call it."""
    requests_per_minute: int | None = None
    concurrency: int | None = None
    is_admin: bool = False
    """It may use the routes below ``/admin`` too."""


def parse_key(entry: str, *, hashed: bool) -> ApiKey:
    """A key from ``sha256:HEX [name=ci] [rpm=60] [concurrency=4] [scope=admin]``.

    Args:
        entry: one line of a key file, or one key of a setting.
        hashed: refuse a key that is spelled out.

    Raises:
        ValueError: it is not of this form. The message shows nothing of a key.
    """
    first, *rest = entry.split()
    if found := _HASH.fullmatch(first):
        digest = bytes.fromhex(found[1])
    elif hashed:
        raise ValueError("a key is spelled out: write its hash, sha256:HEX (`ih-grpo key` makes one)")
    else:
        digest = digest_of(first)
    name = f"key-{digest.hex()[:8]}"
    limits: dict[str, int] = {}
    is_admin = False
    for option in rest:
        option_name, _, value = option.partition("=")
        if option_name == "name" and value:
            name = value
        elif option_name in _LIMITS and value.isdigit() and int(value) > 0:
            limits[_LIMITS[option_name]] = int(value)
        elif (option_name, value) == ("scope", ADMIN):
            is_admin = True
        else:
            raise ValueError(
                f"option {option_name!r} of a key: known are name=WORD, rpm=N, concurrency=N, scope={ADMIN}"
            )
    return ApiKey(digest, name, is_admin=is_admin, **limits)


def parse_keys(entries: Iterable[str], *, hashed: bool) -> tuple[ApiKey, ...]:
    """All keys of ``entries``; blank ones and comments (``#``) are passed over. Raises as `parse_key`."""
    stripped = (entry.strip() for entry in entries)
    return tuple(parse_key(entry, hashed=hashed) for entry in stripped if entry and not entry.startswith("#"))


def find_key(keys: Sequence[ApiKey], presented: str) -> ApiKey | None:
    """The one of ``keys`` that ``presented`` is. Takes the same time whichever it is, or none."""
    digest, found = digest_of(presented), None
    for key in keys:  # no early end: every key is compared
        if hmac.compare_digest(digest, key.digest):
            found = key
    return found


def new_key() -> str:
    """A fresh secret of 256 bits."""
    return f"sk-{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> bytes:
    """SHA-256. Keys are long and random, so no slow hash is needed."""
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


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
