"""Middleware applied to every request: request ids, logs, host names, body limits and decoding.

All of it is pure ASGI, because Starlette's BaseHTTPMiddleware hides the disconnect of a client.
"""

from __future__ import annotations

import gzip
import io
import ipaddress
import re
import secrets
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
import zstandard
from opentelemetry import context, propagate
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import validation
from service.api.errors import ApiError, as_api_error, speaks_anthropic
from service.api.telemetry.metrics import Metrics
from service.api.validation import ValidationReport

IGNORED_HEADER: Final = "x-ih-grpo-ignored"
"""Response header that lists the request's fields without effect."""
EXPOSED_HEADERS: Final = (
    "x-request-id",
    "request-id",
    IGNORED_HEADER,
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)
"""Response headers that scripts of other origins may read."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_LEFT: Final = 499  # nginx's status for it; never sent

_log = structlog.get_logger(__name__)


class RequestContext:
    """ASGI middleware that assigns a request id, logs and counts the request, and handles unexpected errors.

    The client's own ``x-request-id`` is used if it is a plain word.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, strict_requests: bool = False) -> None:
        self._app = app
        self._metrics = metrics
        self._strict_requests = strict_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope)
        asked = sent.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else f"req_{secrets.token_hex(12)}"
        scope["request_id"] = request_id
        is_anthropic = speaks_anthropic(scope)
        status = 0
        report = ValidationReport(self._strict_requests)
        began = time.monotonic()

        def send_with_id(
            message: Message,
        ) -> Awaitable[None]:  # not a coroutine: it is called for every token
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if is_anthropic:
                    headers["request-id"] = request_id
                if report.labels:
                    headers[IGNORED_HEADER] = report.header()
            return send(message)

        # Spans of this request continue the client's trace, if it sent one (W3C traceparent).
        token = context.attach(propagate.extract(sent))
        report_token = validation.current.set(report)
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except ClientDisconnect:
                status = _CLIENT_LEFT
            except Exception as error:
                _log.exception("request_failed")
                if status == 0:
                    await as_api_error(error).response()(scope, receive, send_with_id)
            finally:
                self._report_ignored(report)
                self._finish(scope, status, time.monotonic() - began)
                validation.current.reset(report_token)
                context.detach(token)

    def _report_ignored(self, report: ValidationReport) -> None:
        for label, count in report.labels.items():
            self._metrics.ignored.labels(label).inc(count)
        if report.labels:
            _log.debug("fields_ignored", fields=report.header())

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's pattern, so that unknown paths create no new time series.
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_s.labels(route).observe(seconds)
        _log.info(
            "request", method=scope["method"], path=scope["path"], status=status, ms=round(seconds * 1000, 1)
        )


_LOCAL: Final = ("localhost", "host.docker.internal")
"""Names that can't be pointed to another address."""


class HostCheck:
    """ASGI middleware that rejects requests for unknown host names with 403.

    It keeps web pages from reaching a keyless loopback server through their own domain. Such DNS rebinding
    needs a name that the attacker owns, so addresses and local names always pass. So do requests without a
    Host header, which no browser sends.

    Args:
        app: the next application.
        allowed: more names; ``*.example.com`` means all below it, ``*`` any.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str] = ()) -> None:
        self._app = app
        self._allowed = tuple(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._passes(Headers(scope=scope).get("host", "")):
            message = (
                "This server has no API keys and accepts local host names only. The operator can allow more "
                "names with the setting allowed_hosts."
            )
            await ApiError(403, message, code="host_not_allowed").response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _passes(self, host: str) -> bool:
        name = _host_name(host).rstrip(".").lower()
        if not name or name in _LOCAL or name.endswith(".localhost") or _is_address(name):
            return True
        return any(
            pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
            for pattern in self._allowed
        )


def _host_name(host: str) -> str:
    """Return the host without its port and the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class HeadAsGet:
    """ASGI middleware that serves HEAD on every GET route, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        def send_head(message: Message) -> Awaitable[None]:
            return send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)


_UPLOADS: Final = re.compile(r"/v1/(files|containers/[^/]+/files)/?")
_FORM_BYTES: Final = 64 << 10
"""Size of a form around its file, in bytes."""


def is_upload(scope: Scope) -> bool:
    """Return whether the request uploads a file, whose size the route limits while it arrives."""
    return scope.get("method") == "POST" and _UPLOADS.fullmatch(scope["path"]) is not None


class BodyLimit:
    """ASGI middleware that rejects bodies above ``max_bytes`` with 413, and uploads of larger files.

    Args:
        app: the next application.
        max_bytes: limit of a body.
        max_file_bytes: limit of an uploaded file.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_file_bytes: int = 0) -> None:
        self._app = app
        self._max_body_bytes = max_bytes
        self._max_file_bytes = max_file_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes = self._max_body_bytes
        if is_upload(scope):
            max_bytes = max(max_bytes, self._max_file_bytes + _FORM_BYTES)
        too_large = HTTPException(413, f"The body is too large: at most {max_bytes} bytes.")
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > max_bytes:
            await as_api_error(too_large).response()(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > max_bytes:
                raise too_large
            return message

        await self._app(scope, counted, send)


_ZSTD_WINDOW: Final = 2**23
"""Largest window of a frame in bytes, the one that RFC 9659 requires of every decoder."""


def _gzip(data: bytes, limit: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return file.read(limit)


def _deflate(data: bytes, limit: int) -> bytes:
    return zlib.decompressobj().decompress(data, limit)


def _zstd(data: bytes, limit: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with decompressor.stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        return reader.read(limit)


_DECODERS: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}


class RequestDecoding:
    """ASGI middleware, behind `BodyLimit`, that decodes bodies with a ``Content-Encoding``.

    It decodes at most ``max_bytes``. A larger body is rejected with 413, an unknown encoding with 415.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(raw=list(scope.get("headers", ())))
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if scope["type"] != "http" or encoding in ("identity", ""):
            await self._app(scope, receive, send)
            return
        if (decode := None if is_upload(scope) else _DECODERS.get(encoding)) is None:
            accepted = "none for uploads" if is_upload(scope) else "gzip, deflate, zstd or none"
            error = ApiError(
                415,
                f"Unsupported encoding '{encoding[:40]}': send {accepted}.",
                code="unsupported_encoding",
            )
            names = "identity" if is_upload(scope) else "gzip, deflate, zstd"
            await error.response({"Accept-Encoding": names})(scope, receive, send)
            return
        is_read = False

        async def decoded() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            parts: list[bytes] = []
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return {"type": "http.request", "body": self._decode(decode, encoding, b"".join(parts))}

        del headers["content-encoding"]
        del headers["content-length"]
        await self._app({**scope, "headers": headers.raw}, decoded, send)

    def _decode(self, decode: Callable[[bytes, int], bytes], encoding: str, data: bytes) -> bytes:
        try:
            body = decode(data, self._max_bytes + 1)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError):
            raise ApiError(400, f"The body is not valid {encoding}.", code="invalid_body") from None
        if len(body) > self._max_bytes:
            raise ApiError(413, f"The decoded body is too large: at most {self._max_bytes} bytes.")
        return body
