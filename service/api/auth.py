"""API keys: parsing, limits per key, and the middleware that checks them.

The server knows keys by their hash. Clients send them as a bearer token or in ``x-api-key`` or ``api-key``.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
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
QUOTAS: Final = (
    *("tokens_per_day", "tokens_per_month"),
    *("sandbox_seconds_per_day", "sandbox_seconds_per_month", "stored_bytes"),
)
"""Options of a key that are fields of `KeyQuota`."""
ADMIN: Final = "admin"
"""Scope of keys that may change the server itself. Keys without a scope may only use it."""


@dataclass(frozen=True, slots=True)
class KeyQuota:
    """Amounts that one key may use. None means the server's default, and for a default no limit.

    Days and months are those of UTC.
    """

    tokens_per_day: int | None = None
    """Tokens of prompts and replies."""
    tokens_per_month: int | None = None
    sandbox_seconds_per_day: float | None = None
    """Seconds that code runs."""
    sandbox_seconds_per_month: float | None = None
    stored_bytes: int | None = None
    """Bytes of files, responses and replies at any time."""

    def or_default(self, default: KeyQuota) -> KeyQuota:
        """Return the quota with missing values from ``default``."""
        own = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(default, **own)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. ``digest`` is its SHA-256. A limit of None means the server's default."""

    digest: bytes
    name: str
    """Name in logs and metrics."""
    requests_per_minute: int | None = None
    concurrency: int | None = None
    is_admin: bool = False
    """The key may also use the routes below ``/admin``."""
    quota: KeyQuota = KeyQuota()

    @property
    def owner(self) -> str:
        """Owner of what the key stores: its hash in hexadecimal digits."""
        return self.digest.hex()


def parse_key(entry: str, *, hashed: bool) -> ApiKey:
    """Parse a key of the form ``sha256:HEX [name=ci] [rpm=60] [concurrency=4] [scope=admin]``, with quotas
    such as ``tokens_per_day=100000``.

    Args:
        entry: one line of a key file, or one key of a setting.
        hashed: accept only hashes, not the keys themselves.

    Raises:
        ValueError: the entry is malformed. The message doesn't show the key.
    """
    first, *rest = entry.split()
    if found := _HASH.fullmatch(first):
        digest = bytes.fromhex(found[1])
    elif hashed:
        raise ValueError(
            "a key is in plain text: write its hash, sha256:HEX (`ih-grpo keys create` makes one)"
        )
    else:
        digest = digest_of(first)
    name = f"key-{digest.hex()[:8]}"
    limits: dict[str, int] = {}
    quotas: dict[str, int] = {}
    is_admin = False
    for option in rest:
        option_name, _, value = option.partition("=")
        if option_name == "name" and value:
            name = value
        elif option_name in _LIMITS and value.isdigit() and int(value) > 0:
            limits[_LIMITS[option_name]] = int(value)
        elif option_name in QUOTAS and value.isdigit():
            quotas[option_name] = int(value)
        elif (option_name, value) == ("scope", ADMIN):
            is_admin = True
        else:
            raise ValueError(
                f"unknown key option {option_name!r}: use name=WORD, rpm=N, concurrency=N, scope={ADMIN}, "
                f"{', '.join(f'{quota}=N' for quota in QUOTAS)}"
            )
    return ApiKey(digest, name, is_admin=is_admin, quota=KeyQuota(**quotas), **limits)


def parse_keys(entries: Iterable[str], *, hashed: bool) -> tuple[ApiKey, ...]:
    """Parse all ``entries`` except blank lines and comments (``#``). Raises as `parse_key`."""
    stripped = (entry.strip() for entry in entries)
    return tuple(parse_key(entry, hashed=hashed) for entry in stripped if entry and not entry.startswith("#"))


def find_key(keys: Sequence[ApiKey], presented: str) -> ApiKey | None:
    """Return the entry of ``keys`` that matches ``presented``, in constant time; None if none does."""
    digest, found = digest_of(presented), None
    for key in keys:  # no early return: every key is compared
        if hmac.compare_digest(digest, key.digest):
            found = key
    return found


def new_key() -> str:
    """Return a new secret of 256 bits."""
    return f"sk-{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of ``key``. Keys are long and random, so no slow hash is needed."""
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


BEARER: Final = HTTPBearer(auto_error=False, description="An API key, if the server has any.")
"""Documents the keys in the OpenAPI document. The middleware checks them."""
KEY_HEADERS: Final = ("x-api-key", "api-key")
OPEN_PATHS: Final = frozenset({"/health", "/ready", "/openapi.json"})
"""Paths that need no key. The document describes the routes and contains no data of this server."""


class ApiKeys:
    """ASGI middleware that rejects requests without one of ``keys``, except for open paths.

    The request's key is stored as ``scope["api_key"]``, and its name is part of every log line. For requests
    to open paths without a key, ``scope["anonymous"]`` is true.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._keys = tuple(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
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
            message = (
                "Incorrect API key provided."
                if presented
                else "No API key: send 'Authorization: Bearer KEY', 'x-api-key: KEY' or 'api-key: KEY'."
            )
            await ApiError(401, message).response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _presented(headers: Headers) -> list[str]:
    """Return the secrets in a request's headers: OpenAI's, Anthropic's and Azure's."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    secrets = [token if scheme.lower() == "bearer" else "", *(headers.get(name, "") for name in KEY_HEADERS)]
    return [secret.strip() for secret in secrets if secret.strip()]


async def require_admin(request: Request) -> None:
    """Reject requests without an admin key.

    Raises:
        ApiError: 403, also if the server has no keys.
    """
    key: ApiKey | None = request.scope.get("api_key")
    if key is None or not key.is_admin:
        message = (
            f"This needs an API key of scope '{ADMIN}': the operator creates one with "
            f"`ih-grpo keys create --admin`."
        )
        raise ApiError(403, message, code="missing_scope")
