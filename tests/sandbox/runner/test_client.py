from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.sandbox.base import OutputChunk, QueueTimeoutError, SandboxError, SessionLimits
from service.sandbox.runner import protocol
from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
from tests.sandbox.conftest import Served, ServeFake, process, served
from tests.support.fake_sandbox import TOKEN, FakeSandbox
from tests.support.until import until

LIMITS = SessionLimits()


def other_client(runner: Served, **options: object) -> RunnerClient:
    settings = RunnerClientSettings((runner.settings.bind,), TOKEN, connect_timeout_s=0.3)
    return RunnerClient(replace(settings, **options))  # type: ignore[arg-type]


async def test_sessions_have_separate_namespaces(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        one, two = runner.client.session(LIMITS), runner.client.session(LIMITS)
        await one.invoke("set one")
        await two.invoke("set two")
        for session, stored in ((one, "one"), (two, "two")):
            await session.flush()
            await session.invoke("get")
            await session.invoke("print more")
            result = await session.flush()
            assert (result.status, result.stdout) == ("ok", f"{stored}\nmore\n")
            assert result.started_at is not None
            await session.close()
        assert runner.sandbox.active == set()


async def test_live_output_comes_while_the_flush_runs(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        session = runner.client.session(LIMITS)
        for block in ("print 1", "sleep 30", "print 2"):
            await session.invoke(block)
        first = asyncio.Event()
        flushing = asyncio.create_task(session.flush(lambda chunk: first.set()))
        await first.wait()
        assert not flushing.done()
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        await until(lambda: not runner.sandbox.active)
        await session.close()


async def test_live_output_is_complete_and_only_on_request(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        session = runner.client.session(LIMITS)
        for wanted in (True, False, True):
            await session.invoke("print 1")
            await session.invoke("print 2")
            chunks: list[OutputChunk] = []
            result = await (session.flush(chunks.append) if wanted else session.flush())
            assert result.stdout == "1\n2\n"
            assert [chunk.text for chunk in chunks] == (["1\n", "2\n"] if wanted else [])
        assert runner.sandbox.live_flushes == 2
        await session.close()


async def test_prepare_announces_blocks_to_the_runners_sandbox(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        session = runner.client.session(LIMITS)
        await session.prepare()
        await until(lambda: runner.sandbox.announced == 1)
        assert (runner.sandbox.active, runner.server.runner.admission.active) == (set(), 0)
        await session.invoke("print 1")
        assert (await session.flush()).stdout == "1\n"
        assert len(runner.sandbox.sessions) == 1
        await session.close()


async def test_start_has_its_own_timeout(tmp_path: Path) -> None:
    settings = RunnerClientSettings(
        (f"unix:{tmp_path}/none.sock",), TOKEN, connect_timeout_s=600, start_timeout_s=0.05
    )
    client = RunnerClient(settings)
    with pytest.raises(SandboxError, match=r"the runner at unix:.*none\.sock is not ready"):
        await client.start()
    await client.stop()


async def test_prepare_ignores_an_unreachable_runner(tmp_path: Path) -> None:
    settings = RunnerClientSettings((f"unix:{tmp_path}/none.sock",), TOKEN, connect_timeout_s=0.05)
    session = RunnerClient(settings).session(LIMITS)
    await session.prepare()
    with pytest.raises(SandboxError, match="no runner answers"):
        await session.invoke("print 1")
    await session.close()


async def test_more_blocks_than_may_wait_for_replies(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        session = runner.client.session(LIMITS)
        blocks = [f"print {number}" for number in range(5 * protocol.MAX_AHEAD)]
        for block in blocks:
            await session.invoke(block)
        assert (await session.flush()).stdout == "".join(f"{n}\n" for n in range(len(blocks)))
        assert runner.sandbox.ran == blocks


async def test_a_block_rejected_after_the_first_is_reported_once_at_the_flush(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        session = runner.client.session(LIMITS)
        for block in ("set 1", "refuse", "get"):
            await session.invoke(block)
        failed = await session.flush()
        assert (failed.status, failed.stdout) == ("sandbox_error", "")
        assert "no container" in failed.stderr
        await session.invoke("get")  # in a new namespace
        assert (await session.flush()).stdout == "nothing\n"


async def test_opens_no_session_before_the_first_block(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        session = runner.client.session(LIMITS)
        assert (await session.flush()).status == "ok"
        await session.close()
        assert runner.sandbox.sessions == []
        await session.close()
        with pytest.raises(SandboxError, match="closed"):
            await session.invoke("print 1")
        assert runner.sandbox.sessions == []


async def test_works_over_tcp(unused_tcp_port: int) -> None:
    async with served(FakeSandbox(), f"127.0.0.1:{unused_tcp_port}") as runner:
        session = runner.client.session(LIMITS)
        await session.invoke("print over tcp")
        assert (await session.flush()).stdout == "over tcp\n"


async def test_a_wrong_token_is_not_retried(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        stranger = other_client(runner, token=SecretStr("some other token"), connect_timeout_s=60.0)
        assert not await stranger.ready()
        async with asyncio.timeout(20):
            with pytest.raises(SandboxError, match="same token"):
                await stranger.session(LIMITS).invoke("print 1")
        await stranger.stop()
        assert runner.sandbox.sessions == []


async def test_an_absent_runner_is_reported(tmp_path: Path) -> None:
    client = RunnerClient(RunnerClientSettings((f"unix:{tmp_path}/r.sock",), TOKEN, connect_timeout_s=0.3))
    assert not await client.ready()
    with pytest.raises(SandboxError, match="not ready"):
        await client.start()
    with pytest.raises(SandboxError, match="no runner answers"):
        await client.session(LIMITS).invoke("print 1")
    await client.stop()


async def test_a_rejected_block_leaves_the_session_usable(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        session = runner.client.session(LIMITS)
        with pytest.raises(SandboxError, match="no container"):
            await session.invoke("refuse")
        for code in ("x" * (protocol.MAX_CODE_CHARS + 1), "\x00" * protocol.MAX_CODE_CHARS):
            with pytest.raises(SandboxError, match="sandbox takes"):
                await session.invoke(code)
        await session.invoke("print still here")
        assert (await session.flush()).stdout == "still here\n"


async def test_a_full_queue_raises_immediately(serve_fake: ServeFake) -> None:
    async with serve_fake(max_sessions=1, max_waiting=1, queue_timeout_s=3600) as runner:
        holder, waiting, late = (runner.client.session(LIMITS) for _ in range(3))
        await holder.invoke("set held")
        waiter = asyncio.create_task(waiting.invoke("print waited"))
        await until(lambda: runner.server.runner.admission.waiting == 1)
        with pytest.raises(QueueTimeoutError, match="full"):
            await late.invoke("print 1")
        await holder.close()
        await waiter
        assert (await waiting.flush()).stdout == "waited\n"
        await waiting.close()
        await late.invoke("print my turn")  # the same session may try again
        assert (await late.flush()).stdout == "my turn\n"


async def test_waiting_for_a_container_times_out(serve_fake: ServeFake) -> None:
    async with serve_fake(max_sessions=1, queue_timeout_s=0.1) as runner:
        await runner.client.session(LIMITS).invoke("set held")
        late = runner.client.session(LIMITS)
        with pytest.raises(QueueTimeoutError, match="became free"):
            await late.invoke("print 1")


async def test_a_cancelled_flush_kills_running_code(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        session = runner.client.session(LIMITS)
        await session.invoke("sleep 60")
        flush = asyncio.create_task(session.flush())
        await until(lambda: runner.sandbox.ran)
        flush.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flush
        await until(lambda: not runner.sandbox.active)
        await session.invoke("print lost")
        assert (await session.flush()).status == "sandbox_error"
        await session.invoke("get")
        assert (await session.flush()).stdout == "nothing\n"


async def test_close_from_another_task_ends_a_flush(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        session = runner.client.session(LIMITS)
        await session.invoke("sleep 60")
        flush = asyncio.create_task(session.flush())
        await until(lambda: runner.sandbox.ran)
        await session.close()
        assert (await flush).status == "sandbox_error"
        assert runner.sandbox.active == set()


async def test_a_late_reply_is_a_sandbox_error(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        session = other_client(runner, flush_margin_s=0.1).session(SessionLimits(run_limit_s=0.1))
        await session.invoke("sleep 60")
        result = await session.flush()
        assert result.status == "sandbox_error"
        assert "no answer in 0.2 s" in result.stderr
        await until(lambda: not runner.sandbox.active)


async def test_stop_closes_open_sessions(serve_fake: ServeFake) -> None:
    async with serve_fake() as runner:
        client = other_client(runner)
        sessions = [client.session(LIMITS) for _ in range(5)]
        await asyncio.gather(*(session.invoke("print 1") for session in sessions))
        assert len(runner.sandbox.active) == 5
        await client.stop()
        assert runner.sandbox.active == set()


async def test_a_killed_runner_causes_one_error_and_no_repeated_execution(tmp_path: Path) -> None:
    bind, log = f"unix:{tmp_path}/r.sock", tmp_path / "log"
    client = RunnerClient(RunnerClientSettings((bind,), TOKEN, connect_timeout_s=60.0))
    async with process("tests.support.fake_sandbox", bind, log) as first:
        await client.start()
        busy, idle = client.session(LIMITS), client.session(LIMITS)
        await idle.invoke("set idle")
        assert (await idle.flush()).status == "ok"
        await busy.invoke("sleep 60")
        flush = asyncio.create_task(busy.flush())
        await until(lambda: "sleep" in log.read_text())
        first.kill()
        result = await flush
        assert (result.status, result.stdout) == ("sandbox_error", "")
        assert "runner is gone" in result.stderr
        assert not await client.ready()

    again = asyncio.create_task(busy.invoke("print resumed"))  # waits until the runner is back
    async with process("tests.support.fake_sandbox", bind, log):
        await again
        assert (await busy.flush()).stdout == "resumed\n"
        await idle.invoke("get")  # its namespace is lost, which must be reported as an error
        assert (await idle.flush()).status == "sandbox_error"
        await idle.invoke("get")
        assert (await idle.flush()).stdout == "nothing\n"
        await client.stop()
    assert log.read_text().splitlines() == ["set idle", "sleep 60", "print resumed", "get"]


async def test_not_ready_if_the_connection_is_cut(tmp_path: Path) -> None:
    server = await asyncio.start_unix_server(lambda _, writer: writer.transport.abort(), tmp_path / "r.sock")
    async with server:
        client = RunnerClient(RunnerClientSettings((f"unix:{tmp_path}/r.sock",), TOKEN))
        assert not await client.ready()
        await client.stop()
