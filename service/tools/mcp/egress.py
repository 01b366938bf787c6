"""Outgoing connections to MCP servers that a request names: allowed hosts, and only to checked addresses.

A host name is resolved once for each request, every address is checked, and the connection goes to the
address that was checked. So a name server that changes its answers (DNS rebinding) gains nothing. The SDK
follows redirects within the same origin only, and each one passes through here again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

import httpx2

MAX_RESPONSE_BYTES: Final = 4 << 20
"""Largest response of a server, in bytes. A longer one is cut with an error."""


class EgressError(Exception):
    """The server may not be connected to. The message names the rule."""


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Hosts that requests may name. Without any, servers in requests are rejected."""

    hosts: tuple[str, ...] = ()
    """Host names, each with an optional ``*.`` in front and port at its end. ``*`` means every host. Their
    addresses must be public, and the connection encrypted."""
    private_hosts: tuple[str, ...] = ()
    """Hosts in the same form whose addresses may be private, and which may be reached over plain HTTP."""

    def check_url(self, url: str) -> None:
        """Check a server's URL, without resolving its name.

        Raises:
            EgressError: it is not allowed.
        """
        parsed = _parse(url)
        is_private = _matches(parsed, self.private_hosts)
        if not is_private and not _matches(parsed, self.hosts):
            raise EgressError(f"this server does not allow connections to {parsed.host!r}")
        if parsed.scheme != "https" and not is_private:
            raise EgressError("the URL must begin with https://")
        if parsed.userinfo:
            raise EgressError("the URL must not contain a user name or password")

    def is_private(self, url: httpx2.URL) -> bool:
        """Return whether the host's addresses may be private."""
        return _matches(url, self.private_hosts)


def _parse(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        raise EgressError("it is not a valid URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise EgressError("it is not a URL of the form https://host/path")
    return parsed


def _matches(url: httpx2.URL, patterns: Sequence[str]) -> bool:
    host = url.host.lower().rstrip(".")
    port = url.port or (443 if url.scheme == "https" else 80)
    for pattern in patterns:
        name, colon, wanted = pattern.lower().rpartition(":")
        if not colon or not wanted.isdigit():
            name, wanted = pattern.lower(), ""
        name = name.strip("[]")
        if wanted and int(wanted) != port:
            continue
        if name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if embedded is None and ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host.

    Raises:
        EgressError: it has none.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise EgressError(f"the host {host!r} is unknown") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class CheckedTransport(httpx2.AsyncBaseTransport):
    """HTTP transport that connects only to addresses that the policy allows, and bounds responses."""

    def __init__(self, policy: EgressPolicy, inner: httpx2.AsyncBaseTransport | None = None) -> None:
        self._policy = policy
        self._inner = inner or httpx2.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        self._policy.check_url(str(url))
        addresses = await resolve(url.host, url.port or (443 if url.scheme == "https" else 80))
        if not self._policy.is_private(url) and not all(map(is_public, addresses)):
            raise EgressError(f"the host {url.host!r} has an address that is not public")
        request.extensions = {**request.extensions, "sni_hostname": url.host}
        request.headers.setdefault("host", url.netloc.decode("ascii"))
        request.url = url.copy_with(host=addresses[0])
        try:
            response = await self._inner.handle_async_request(request)
        finally:
            request.url = url  # redirects are relative to the name
        return bounded(response)

    async def aclose(self) -> None:
        await self._inner.aclose()


class BoundedTransport(httpx2.AsyncBaseTransport):
    """HTTP transport for servers of the operator: any address, but bounded responses."""

    def __init__(self) -> None:
        self._inner = httpx2.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return bounded(await self._inner.handle_async_request(request))

    async def aclose(self) -> None:
        await self._inner.aclose()


def bounded(response: httpx2.Response) -> httpx2.Response:
    """Return ``response`` with a body that ends with an error after `MAX_RESPONSE_BYTES`."""
    return httpx2.Response(
        status_code=response.status_code,
        headers=response.headers,
        stream=_BoundedStream(cast("httpx2.AsyncByteStream", response.stream)),
        extensions=response.extensions,
    )


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > MAX_RESPONSE_BYTES:
                raise httpx2.ReadError(f"the response is larger than {MAX_RESPONSE_BYTES} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
