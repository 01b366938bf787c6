from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from service.tools.mcp import egress
from service.tools.mcp.egress import (
    MAX_RESPONSE_BYTES,
    CheckedTransport,
    EgressError,
    EgressPolicy,
    bounded,
    is_public,
)


@pytest.mark.parametrize(
    ("policy", "url", "allowed"),
    [
        (EgressPolicy(), "https://mcp.example.com/mcp", False),
        (EgressPolicy(("mcp.example.com",)), "https://mcp.example.com/mcp", True),
        (EgressPolicy(("mcp.example.com",)), "https://MCP.Example.com./mcp", True),
        (EgressPolicy(("mcp.example.com",)), "http://mcp.example.com/mcp", False),
        (EgressPolicy(("mcp.example.com",)), "https://user:pw@mcp.example.com/", False),
        (EgressPolicy(("mcp.example.com",)), "https://evil.com/?mcp.example.com", False),
        (EgressPolicy(("mcp.example.com",)), "https://mcp.example.com@evil.com/", False),
        (EgressPolicy(("mcp.example.com:8443",)), "https://mcp.example.com:8443/", True),
        (EgressPolicy(("mcp.example.com:8443",)), "https://mcp.example.com/", False),
        (EgressPolicy(("*.example.com",)), "https://a.b.example.com/", True),
        (EgressPolicy(("*.example.com",)), "https://example.com/", False),
        (EgressPolicy(("*.example.com",)), "https://notexample.com/", False),
        (EgressPolicy(("*",)), "https://anything.net/", True),
        (EgressPolicy(("*",)), "ftp://anything.net/", False),
        (EgressPolicy(("*",)), "file:///etc/passwd", False),
        (EgressPolicy(("*",)), "not a url", False),
        (EgressPolicy((), ("localhost:8000",)), "http://localhost:8000/mcp", True),
        (EgressPolicy((), ("localhost:8000",)), "http://localhost:8001/mcp", False),
        (EgressPolicy((), ("[::1]:8000",)), "http://[::1]:8000/mcp", True),
    ],
)
def test_policy(policy: EgressPolicy, url: str, allowed: bool) -> None:
    if allowed:
        policy.check_url(url)
    else:
        with pytest.raises(EgressError):
            policy.check_url(url)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        *[
            (address, False)
            for address in (
                *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
                *("100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1", "240.0.0.1"),
                *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1"),
                *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1"),
            )
        ],
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) is expected


class Recorder(httpx2.AsyncBaseTransport):
    """Records the hosts that are connected to, and answers with a redirect."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        sni = request.extensions.get("sni_hostname")
        self.requests.append((request.url.host, request.headers["host"], sni))
        return httpx2.Response(307, headers={"location": "https://internal.example.com/"})


def names(monkeypatch: pytest.MonkeyPatch, **answers: list[str]) -> None:
    """Let hosts resolve to ``answers``, one of them for each lookup."""

    async def resolve(host: str, port: int) -> list[str]:
        return [answers[host.partition(".")[0]].pop(0)]

    monkeypatch.setattr(egress, "resolve", resolve)


async def test_connects_to_the_checked_address(monkeypatch: pytest.MonkeyPatch) -> None:
    # A name server that answers with a private address the next time (DNS rebinding).
    names(monkeypatch, mcp=["93.184.216.34", "127.0.0.1"])
    inner = Recorder()
    async with httpx2.AsyncClient(transport=CheckedTransport(EgressPolicy(("*",)), inner)) as client:
        await client.post("https://mcp.example.com/mcp")
        assert inner.requests == [("93.184.216.34", "mcp.example.com", "mcp.example.com")]
        with pytest.raises(EgressError, match="not public"):
            await client.post("https://mcp.example.com/mcp")
        assert len(inner.requests) == 1


async def test_redirects_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, mcp=["93.184.216.34"], internal=["10.0.0.1"])
    for policy, message in ((EgressPolicy(("*",)), "not public"), (EgressPolicy(("mcp.*",)), "not allow")):
        inner = Recorder()
        transport = CheckedTransport(policy, inner)
        async with httpx2.AsyncClient(transport=transport, follow_redirects=True) as client:
            with pytest.raises(EgressError, match=message):
                await client.get("https://mcp.example.com/mcp")
        assert len(inner.requests) <= 1


async def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34", "10.0.0.1"]

    monkeypatch.setattr(egress, "resolve", resolve)
    transport = CheckedTransport(EgressPolicy(("*",)), Recorder())
    async with httpx2.AsyncClient(transport=transport) as client:
        with pytest.raises(EgressError, match="not public"):
            await client.get("https://mcp.example.com/mcp")


async def test_unknown_hosts_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise socket.gaierror

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
    with pytest.raises(EgressError, match="unknown"):
        await egress.resolve("nowhere.example.com", 443)


async def test_responses_are_bounded() -> None:
    class Endless(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 2**16

        async def aclose(self) -> None: ...

    response = bounded(httpx2.Response(200, stream=Endless()))
    with pytest.raises(httpx2.ReadError, match=str(MAX_RESPONSE_BYTES)):
        await response.aread()
