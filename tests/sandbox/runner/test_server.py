from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from service.sandbox.base import SandboxError, SessionLimits
from service.sandbox.runner import protocol
from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
from service.sandbox.runner.control import set_draining
from service.sandbox.runner.protocol import DrainingError
from service.sandbox.runner.server import serve
from service.sandbox.runner.settings import RunnerSettings
from tests.sandbox.conftest import Served, ServeFake, process
from tests.support.fake_sandbox import TOKEN, FakeSandbox
from tests.support.until import until

BEARER = {"Authorization": f"Bearer {TOKEN.get_secret_value()}"}
OPEN = '{"type": "open", "run_limit_s": 3.0, "eager": true}'


def http(runner: Served) -> httpx.AsyncClient:
    path = runner.settings.bind.removeprefix("unix:")
    return httpx.AsyncClient(base_url="http://runner", transport=httpx.AsyncHTTPTransport(uds=path))


def connect(runner: Served, headers: dict[str, str] = BEARER) -> unix_connect:
    path = runner.settings.bind.removeprefix("unix:")
    return unix_connect(
        path, f"ws://runner{protocol.SESSION_PATH}", additional_headers=headers, max_size=None
    )


async def request(socket: ClientConnection, *frames: str | bytes) -> dict[str, Any]:
    """Send ``frames`` one by one and return the reply to the last."""
    reply: str | bytes = ""
    for frame in frames:
        await socket.send(frame)
        reply = await socket.recv()
    return dict(json.loads(reply))


async def test_only_health_needs_no_token(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner, http(runner) as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        for path in ("/ready", "/metrics"):
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers={"Authorization": "Bearer wrong"})).status_code == 401
            assert (await client.get(path, headers=BEARER)).status_code == 200
        for path in ("/docs", "/openapi.json", "/containers/json"):
            assert (await client.get(path, headers=BEARER)).status_code == 404
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(InvalidStatus) as refused:
                await connect(runner, headers)
            assert refused.value.response.status_code == 401
        assert runner.sandbox.sessions == []


async def test_a_client_that_reads_no_live_output_does_not_delay_the_flush(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner, connect(runner) as socket:
        await request(socket, OPEN)
        socket.transport.pause_reading()
        line = "x" * 500_000  # more than the buffers of a socket hold
        for number in range(6):
            await socket.send(json.dumps({"type": "invoke", "code": f"print {number} {line}"}))
        await socket.send('{"type": "flush", "live_output": true}')
        await until(lambda: len(runner.sandbox.ran) == 6)
        await until(lambda: runner.sandbox.finished == 1)
        socket.transport.resume_reading()
        replies = [json.loads(await socket.recv()) for _ in range(13)]
    assert [reply["type"] for reply in replies] == ["invoked"] * 6 + ["output"] * 6 + ["flushed"]
    assert replies[6]["chunk"] == {
        "stream": "stdout",
        "text": f"0 {line}\n",
        "attempt": 1,
        "truncated": False,
    }


async def test_ready_reports_the_state_and_the_load(serve_fake: ServeFake) -> None:
    async with serve_fake(max_sessions=3) as runner, http(runner) as client:
        session = runner.client.session(SessionLimits())
        await session.invoke("set 1")
        answer = await client.get("/ready", headers=BEARER)
        assert (answer.status_code, answer.json()) == (
            200,
            {"state": "ready", "max_sessions": 3, "connections": 1, "sessions": 1, "waiting": 0},
        )
        runner.sandbox.is_ready = False
        answer = await client.get("/ready", headers=BEARER)
        assert (answer.status_code, answer.json()["state"]) == (503, "not_ready")


async def test_drain_rejects_new_sessions_and_lets_open_ones_continue(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner, http(runner) as client:
        assert (await client.post("/drain")).status_code == 401
        session, idle = (runner.client.session(SessionLimits()) for _ in range(2))
        await session.invoke("set kept")
        await idle.prepare()
        answer = await client.post("/drain", headers=BEARER)
        assert (answer.json()["state"], answer.json()["connections"]) == ("draining", 2)
        assert (await client.get("/ready", headers=BEARER)).status_code == 503
        assert "ihgrpo_runner_draining 1.0" in (await client.get("/metrics", headers=BEARER)).text
        with pytest.raises(InvalidStatus):
            await connect(runner)
        with pytest.raises(DrainingError):
            await idle.invoke("print 1")
        await session.invoke("get")
        assert (await session.flush()).stdout == "kept\n"
        await session.close()
        await idle.close()
        assert (await client.post("/drain", headers=BEARER)).json()["connections"] == 0
        assert (await client.delete("/drain", headers=BEARER)).json()["state"] == "ready"
        late = runner.client.session(SessionLimits())
        await late.invoke("print 2")
        assert (await late.flush()).stdout == "2\n"


async def test_metrics_count_flushes_and_hold_no_code(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner, http(runner) as client:
        session = runner.client.session(SessionLimits())
        await session.invoke("print secret")
        await session.flush()
        text = (await client.get("/metrics", headers=BEARER)).text
        assert 'ihgrpo_runner_flushes_total{status="ok"} 1.0' in text
        assert "ihgrpo_runner_sessions 1.0" in text
        assert "ihgrpo_pool_leased 1.0" in text
        assert "ihgrpo_pool_started_total 1.0" in text
        assert 'ihgrpo_pool_kills_total{reason="timeout"} 3.0' in text
        assert "secret" not in text


async def test_clips_limits_to_the_ceiling(serve_fake: ServeFake) -> None:
    async with serve_fake(max_run_limit_s=5.0) as runner:
        for asked, granted in ((3600.0, 5.0), (2.0, 2.0)):
            async with connect(runner) as socket:
                reply = await request(
                    socket, json.dumps({"type": "open", "run_limit_s": asked, "eager": False})
                )
                limits = {"run_limit_s": granted, "eager": False, "queue_timeout_s": 30.0}
                assert reply == {"type": "opened", **limits}
            assert runner.sandbox.sessions[-1].limits == SessionLimits(granted, eager=False)


BROKEN = {
    "not json": ("{", "Invalid JSON"),
    "binary": (b'{"type": "flush"}', "JSON text"),
    "no open": ('{"type": "flush"}', "first message"),
    "unknown field": (OPEN.replace("}", ', "image": "x"}'), "image"),
    "unknown type": ('{"type": "exec"}', "type"),
}


@pytest.mark.parametrize(("frame", "reason"), BROKEN.values(), ids=BROKEN)
async def test_disconnects_clients_that_violate_the_protocol(
    serve_fake: ServeFake, frame: str | bytes, reason: str
) -> None:
    async with serve_fake() as runner:
        async with connect(runner) as socket:
            await socket.send(frame)
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == protocol.CLOSE_VIOLATION
            assert reason in closed.value.rcvd.reason
        async with connect(runner) as socket:
            await request(socket, OPEN, '{"type": "invoke", "code": "print 1"}')
            await socket.send(frame if frame != BROKEN["no open"][0] else OPEN)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        await until(lambda: all(session.closed for session in runner.sandbox.sessions))
        assert runner.sandbox.active == set()


async def test_disconnects_on_a_frame_over_the_size_limit(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner, connect(runner) as socket:
        await request(socket, OPEN)
        frame = json.dumps({"type": "invoke", "code": "x" * protocol.MAX_REQUEST_BYTES})
        with pytest.raises(ConnectionClosed) as closed:
            await request(socket, frame)
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
        await until(lambda: runner.sandbox.sessions[0].closed)


async def test_disconnects_on_a_flood_of_requests(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner, connect(runner) as socket:
        await request(socket, OPEN, '{"type": "invoke", "code": "sleep 60"}')
        for _ in range(protocol.MAX_AHEAD + 3):
            await socket.send('{"type": "flush"}')
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == protocol.CLOSE_VIOLATION
        await until(lambda: runner.sandbox.active == set())


async def test_a_disconnect_during_a_flush_ends_the_session(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        socket = await connect(runner)
        await request(socket, OPEN, '{"type": "invoke", "code": "sleep 60"}')
        await socket.send('{"type": "flush"}')
        await until(lambda: runner.sandbox.ran == ["sleep 60"])
        socket.transport.abort()
        await until(lambda: runner.sandbox.sessions[0].closed)
        assert runner.sandbox.active == set()
        assert runner.server.runner.admission.active == 0


async def test_close_is_answered_after_the_session_ended(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner, connect(runner) as socket:
        await request(socket, OPEN, '{"type": "invoke", "code": "sleep 60"}')
        await socket.send('{"type": "flush"}')
        await socket.send('{"type": "close"}')
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000
        assert runner.sandbox.active == set()


async def test_a_lease_expires(serve_fake: ServeFake) -> None:
    async with serve_fake(lease_s=0.2) as runner, connect(runner) as socket:

        async def hold() -> None:
            await request(socket, OPEN, '{"type": "invoke", "code": "print 1"}')
            await socket.recv()

        with pytest.raises(ConnectionClosed) as closed:
            await hold()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == protocol.CLOSE_LEASE_OVER
        assert runner.sandbox.active == set()


async def test_limits_the_number_of_connections(serve_fake: ServeFake) -> None:
    async with serve_fake(max_connections=1) as runner, connect(runner):
        with pytest.raises(InvalidStatus) as refused:
            await connect(runner)
        assert refused.value.response.status_code == 503


async def test_an_unexpected_error_ends_the_session_and_is_logged_without_code(
    serve_fake: ServeFake, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serve_fake() as runner, connect(runner) as socket:
        await request(
            socket, OPEN, '{"type": "invoke", "code": "print secret"}', '{"type": "invoke", "code": "bug"}'
        )
        with pytest.raises(ConnectionClosed) as closed:
            await request(socket, '{"type": "flush"}')
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == protocol.CLOSE_INTERNAL
        await until(lambda: runner.sandbox.active == set())
    out, err = capfd.readouterr()
    assert "lease_failed" in out + err
    assert "secret" not in out + err


async def test_sigterm_drains_open_sessions_and_rejects_new_ones(tmp_path: Path) -> None:
    bind, log = f"unix:{tmp_path}/r.sock", tmp_path / "log"
    client = RunnerClient(RunnerClientSettings((bind,), TOKEN, connect_timeout_s=60.0))
    async with process("tests.support.fake_sandbox", bind, log) as child:
        await client.start()
        assert (tmp_path / "r.sock").stat().st_mode & 0o777 == 0o600
        session = client.session(SessionLimits())
        await session.invoke("set kept")
        assert (await session.flush()).status == "ok"
        child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            while await client.ready():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        late = RunnerClient(RunnerClientSettings((bind,), TOKEN, connect_timeout_s=0.2))
        with pytest.raises(SandboxError, match="no more connections"):
            await late.session(SessionLimits()).invoke("print late")
        await session.invoke("get")
        assert (await session.flush()).stdout == "kept\n"
        await session.close()
        await child.wait()
        assert not (tmp_path / "r.sock").exists()
        await client.stop()
    assert log.read_text().splitlines() == ["set kept", "get"]


async def test_does_not_serve_a_sandbox_that_fails_to_start(tmp_path: Path) -> None:
    class Leaky(FakeSandbox):
        async def start(self) -> None:
            raise SandboxError("the sandbox failed an isolation check: network")

    settings = RunnerSettings(bind=f"unix:{tmp_path}/r.sock", token=TOKEN)
    with pytest.raises(SandboxError, match="network"):
        await serve(Leaky(), settings)
    assert not await RunnerClient(RunnerClientSettings((settings.bind,), TOKEN)).ready()


async def test_control_reports_what_is_wrong(serve_fake: ServeFake, tmp_path: Path) -> None:
    async with serve_fake() as runner:
        assert (await asyncio.to_thread(set_draining, runner.settings, on=True)).state == "draining"
        assert (await asyncio.to_thread(set_draining, runner.settings, on=False)).state == "ready"
        stranger = runner.settings.model_copy(update={"token": SecretStr("quite-another-token")})
        with pytest.raises(SandboxError, match="different token"):
            await asyncio.to_thread(set_draining, stranger, on=True)
    with pytest.raises(SandboxError, match="there is no socket"):
        set_draining(runner.settings.model_copy(update={"bind": f"unix:{tmp_path}/absent.sock"}), on=True)
