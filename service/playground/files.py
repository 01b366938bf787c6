"""The page at ``/``: static files without secrets, which need no API key."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

STATIC: Final = Path(__file__).parent / "static"
INDEX: Final = "index.html"
# Text of a model is untrusted. If a bug let some of it through as markup, the policy would keep it from
# running, loading or sending anything. With trusted types, only DOMPurify can create markup from text.
TRUSTED_TYPES: Final = "require-trusted-types-for 'script'; trusted-types dompurify"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " + TRUSTED_TYPES
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # revalidated each time, usually with 304
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A static file in memory."""

    content: bytes
    media_type: str
    etag: str


class StaticPages:
    """ASGI middleware that serves ``files`` by path, with ``headers``, and passes on all other requests."""

    def __init__(self, app: ASGIApp, files: Mapping[str, StaticFile], headers: Mapping[str, str]) -> None:
        self._app = app
        self._files = files
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        file = self._files.get(scope["path"]) if scope["type"] == "http" else None
        if file is None or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        headers = {**self._headers, "ETag": file.etag}
        if Headers(scope=scope).get("if-none-match") == file.etag:
            response = Response(status_code=304, headers=headers)
        else:
            response = Response(file.content, media_type=file.media_type, headers=headers)
        await response(scope, receive, send)


class Playground(StaticPages):
    """ASGI middleware that serves ``/`` and ``/playground/*``. The files are read once."""

    def __init__(self, app: ASGIApp) -> None:
        found = (file for file in STATIC.rglob("*") if file.is_file())
        super().__init__(app, {_path(file): read_file(file) for file in found}, HEADERS)


def _path(file: Path) -> str:
    name = file.relative_to(STATIC).as_posix()
    return "/" if name == INDEX else f"/playground/{name}"


def read_file(file: Path) -> StaticFile:
    """Read a file to be served. Its media type depends on its name."""
    content = file.read_bytes()
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return StaticFile(content, media_type, f'"{sha256(content).hexdigest()[:32]}"')
