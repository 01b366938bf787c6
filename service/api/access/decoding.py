"""Compressed request bodies."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from typing import Final

import zstandard
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ApiError

_ZSTD_WINDOW: Final = 2**23
"""Bytes of history that a frame may ask for; what every decoder must support by RFC 9659."""


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
    """Pure ASGI middleware behind `BodyLimit`: decodes a body with a ``Content-Encoding``.

    No more than ``max_bytes`` are ever decoded; a larger body gets 413, an unknown encoding 415.
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
        if (decode := _DECODERS.get(encoding)) is None:
            error = ApiError(
                415,
                f"Bodies encoded with '{encoding[:40]}' can't be read: send gzip, deflate, zstd or none.",
                code="unsupported_encoding",
            )
            await error.response({"Accept-Encoding": "gzip, deflate, zstd"})(scope, receive, send)
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
