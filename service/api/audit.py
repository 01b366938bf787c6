"""The audit log: who created, deleted or changed something, and who was rejected, without content or secrets.

Entries are JSON objects, one per line, in a file per day (UTC) that every server and command of a machine
appends to. Code that serves a request calls `record`, which adds the key, the address and the request id.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import ApiKey
from service.common.json import Json, dumps

_PREFIX: Final = "audit-"
_SUFFIX: Final = ".jsonl"
_DENIALS_PER_MINUTE: Final = 60
"""Entries about rejected requests in a minute. Further ones are only counted."""
_DENIED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_log = structlog.get_logger(__name__)


class AuditLog:
    """Append-only log in a directory.

    Each entry is one write, so several processes can share the directory, and files can be moved away
    at any time.

    Args:
        directory: created if missing; only its owner can read the files.
        days: days that a file is kept.
        clock: Unix time.

    Raises:
        OSError: the directory can't be created or written.
    """

    def __init__(self, directory: Path, *, days: float, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._keep_s = days * 86_400
        self.clock = clock
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"audit_dir {directory} is not writable")

    def record(self, action: str, *, target: str | None = None, result: str = "ok", **fields: object) -> None:
        """Append an entry. If that fails, the entry goes to the server's log.

        Args:
            action: object and verb, such as ``file.delete``.
            target: id of the object.
            result: ``ok``, ``denied`` or ``failed``.
            fields: more fields without content; None is left out.
        """
        now = datetime.fromtimestamp(self.clock(), UTC)
        entry: Json = {"time": now.isoformat(timespec="milliseconds"), "action": action, "result": result}
        entry |= {name: value for name, value in {"target": target, **fields}.items() if value is not None}
        path = self._directory / f"{_PREFIX}{now:%Y-%m-%d}{_SUFFIX}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, dumps(entry) + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            _log.error("audit_not_written", error=str(error), entry=entry)

    async def clean(self) -> None:
        """Delete files that are older than the days they are kept."""
        before = datetime.fromtimestamp(self.clock() - self._keep_s, UTC)
        for path in self._directory.glob(f"{_PREFIX}*{_SUFFIX}"):
            if path.name < f"{_PREFIX}{before:%Y-%m-%d}":
                path.unlink(missing_ok=True)


class AuditedRequest:
    """A request whose actions are logged.

    Args:
        log: the log.
        scope: of the request. `service.api.auth.ApiKeys` adds the key to it.
    """

    def __init__(self, log: AuditLog, scope: Scope) -> None:
        self._log = log
        self._scope = scope

    def record(self, action: str, *, target: str | None, result: str = "ok", **fields: object) -> None:
        """Append an entry with the key, address and id of the request."""
        scope = self._scope
        key: ApiKey | None = scope.get("api_key")
        client = scope.get("client")
        self._log.record(
            action,
            target=target,
            result=result,
            key=None if key is None else key.name,
            key_id=None if key is None else f"sha256:{key.owner}",
            address=None if client is None else client[0],
            request_id=scope.get("request_id"),
            **fields,
        )


_current: ContextVar[AuditedRequest | None] = ContextVar("audited_request", default=None)


def record(action: str, *, target: str, result: str = "ok") -> None:
    """Log an action of the current request; no effect without an audit log.

    For example ``record("approval.grant", target=approval_id)``.
    """
    if (request := _current.get()) is not None:
        request.record(action, target=target, result=result)


class Audit:
    """ASGI middleware that logs deletions, changes of the server and rejected requests.

    It comes before `service.api.auth.ApiKeys`. Routes that create something call `record` themselves.
    """

    def __init__(self, app: ASGIApp, log: AuditLog) -> None:
        self._app = app
        self._log = log
        self._minute = 0
        self._denials = 0
        self._suppressed = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, status = AuditedRequest(self._log, scope), 0

        def send_and_note(message: Message) -> Awaitable[None]:  # not a coroutine, as in `RequestContext`
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        token = _current.set(request)
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            _current.reset(token)
            self._note(request, scope, status)

    def _note(self, request: AuditedRequest, scope: Scope, status: int) -> None:
        method, path = scope["method"], str(scope["path"])[:200]
        if status in _DENIED:
            self._note_denial(request, f"{method} {path}", status)
        elif (action := _action(method, scope)) is not None:
            result = "ok" if 0 < status < HTTPStatus.BAD_REQUEST else "failed"
            request.record(action, target=path, result=result, status=status)

    def _note_denial(self, request: AuditedRequest, target: str, status: int) -> None:
        minute = int(self._log.clock()) // 60
        if minute != self._minute:
            self._minute, self._denials = minute, 0
        if self._denials >= _DENIALS_PER_MINUTE:
            self._suppressed += 1
            return
        self._denials += 1
        suppressed, self._suppressed = self._suppressed, 0
        request.record(
            "request.authenticate" if status == HTTPStatus.UNAUTHORIZED else "request.authorize",
            target=target,
            result="denied",
            status=status,
            suppressed=suppressed or None,
        )


def _action(method: str, scope: Scope) -> str | None:
    """Return the action of a request that deletes something or changes the server."""
    pattern = getattr(scope.get("route"), "path", "")
    names = [part for part in pattern.split("/") if part and part != "v1" and not part.startswith("{")]
    if method == "DELETE" and names:
        return ".".join([*(name.removesuffix("s") for name in names), "delete"])
    if method == "POST" and names[:1] == ["admin"]:
        return ".".join(names)
    return None
