"""Check of the Host header: no web page may reach a keyless loopback server through its own domain."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import ApiError

_LOCAL: Final = ("localhost", "host.docker.internal")
"""Names that nobody can point elsewhere."""


class HostCheck:
    """Pure ASGI middleware: answers 403 to a request whose Host is a name that is not allowed.

    DNS rebinding needs a name that the attacker owns, so addresses and local names always pass, and so does a
    request without the header, which no browser sends.

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
                "This server has no API keys and answers to local names only. The operator may allow more "
                "names with the setting allowed_hosts."
            )
            await ApiError(403, message, code="host_not_allowed").response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _passes(self, host: str) -> bool:
        name = _name(host).rstrip(".").lower()
        if not name or name in _LOCAL or name.endswith(".localhost") or _is_address(name):
            return True
        return any(
            pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
            for pattern in self._allowed
        )


def _name(host: str) -> str:
    """The host without its port; the brackets of an IPv6 address are dropped."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
