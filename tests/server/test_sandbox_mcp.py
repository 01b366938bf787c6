"""The sandbox as an MCP server, with the SDK's own client and a fake sandbox."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from service.sandbox.base import SandboxError, SessionLimits
from service.server.sandbox_mcp import Namespaces, RequireToken, make_server, running
from tests.support.fake_sandbox import FakeSandbox
from tests.support.mcp_server import serve_asgi

TOKEN = "a-token-for-the-tests-only"


@pytest.fixture
async def sandbox() -> FakeSandbox:
    return FakeSandbox()


@pytest.fixture
async def namespaces(sandbox: FakeSandbox) -> AsyncGenerator[Namespaces]:
    namespaces = Namespaces(sandbox, SessionLimits(run_limit_s=5), maximum=2)
    async with running(sandbox, namespaces):
        yield namespaces
    assert not sandbox.active


async def test_blocks_wait_for_the_flush(namespaces: Namespaces, sandbox: FakeSandbox) -> None:
    async with Client(make_server(namespaces)) as client:
        listed = await client.list_tools()
        assert [tool.name for tool in listed.tools] == ["python_run", "python_invoke", "python_flush"]
        first = await client.call_tool("python_invoke", {"code": "print one"})
        session_id = first.structured_content["session_id"]
        assert first.structured_content["pending_blocks"] == 1
        second = await client.call_tool("python_invoke", {"code": "print two", "session_id": session_id})
        assert second.structured_content == {"session_id": session_id, "pending_blocks": 2}
        flushed = await client.call_tool("python_flush", {"session_id": session_id})
        assert flushed.structured_content["stdout"] == "one\ntwo\n"
        assert (flushed.structured_content["status"], flushed.is_error) == ("ok", False)


async def test_a_namespace_lives_on_and_others_do_not_see_it(namespaces: Namespaces) -> None:
    async with Client(make_server(namespaces)) as client:
        first = (await client.call_tool("python_run", {"code": "set x"})).structured_content
        again = await client.call_tool("python_run", {"code": "get", "session_id": first["session_id"]})
        assert again.structured_content["stdout"] == "x\n"
        other = await client.call_tool("python_run", {"code": "get"})
        assert other.structured_content["stdout"] == "nothing\n"
        assert other.structured_content["session_id"] != first["session_id"]


async def test_errors_are_results(namespaces: Namespaces) -> None:
    async with Client(make_server(namespaces)) as client:
        for tool, arguments, message in (
            ("python_flush", {"session_id": "guess"}, "unknown"),
            ("python_run", {"code": "refuse"}, "no container"),
            ("python_run", {}, "code"),
        ):
            result = await client.call_tool(tool, arguments)
            assert result.is_error
            assert message in str(result.content)
        broken = await client.call_tool("python_run", {"code": "break"})
        assert broken.structured_content["status"] == "sandbox_error"


async def test_namespaces_are_limited_and_expire(namespaces: Namespaces) -> None:
    async with Client(make_server(namespaces)) as client:
        ids = [
            (await client.call_tool("python_run", {"code": "set x"})).structured_content["session_id"]
            for _ in range(2)
        ]
        assert (await client.call_tool("python_run", {"code": "get"})).is_error
        await namespaces.close_unused(time.monotonic())
        assert (await client.call_tool("python_flush", {"session_id": ids[0]})).is_error
        assert not (await client.call_tool("python_run", {"code": "get"})).is_error


async def test_a_sandbox_that_does_not_start_is_reported_by_every_call() -> None:
    class Missing(FakeSandbox):
        async def start(self) -> None:
            raise SandboxError("no Docker")

    sandbox = Missing()
    namespaces = Namespaces(sandbox, SessionLimits())
    async with (
        running(sandbox, namespaces, in_background=True),
        Client(make_server(namespaces)) as client,
    ):
        result = await client.call_tool("python_run", {"code": "print x"})
        assert "did not start: no Docker" in str(result.content)
    with pytest.raises(SandboxError, match="no Docker"):
        async with running(sandbox, Namespaces(sandbox, SessionLimits())):
            pass


async def test_http_needs_the_token(namespaces: Namespaces) -> None:
    app = RequireToken(make_server(namespaces).streamable_http_app(), TOKEN)
    async with serve_asgi(app) as address:
        url = f"{address}/mcp"
        async with httpx2.AsyncClient() as http:
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                assert (await http.post(url, json={}, headers=headers)).status_code == 401
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            result = await client.call_tool("python_run", {"code": "print hi"})
            assert result.structured_content["stdout"] == "hi\n"
