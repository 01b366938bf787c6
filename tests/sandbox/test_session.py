from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from service.sandbox.base import (
    MAX_LIVE_BYTES,
    ExecutionResult,
    OutputChunk,
    QueueTimeoutError,
    SandboxError,
    SessionLimits,
)
from service.sandbox.pool import Pool
from service.sandbox.session import PooledSession
from service.sandbox.worker_protocol import MAX_CODE_BYTES, Ready, Result, SandboxWorker, Settled, Suspended
from tests.support.fake_worker import Factory, FakeWorker, output_frame, result
from tests.support.tool_host import RecordingHost
from tests.support.until import until


@pytest.fixture
async def factory() -> Factory:
    return Factory()


@pytest.fixture
async def pool(factory: Factory) -> AsyncGenerator[Pool]:
    pool = Pool(factory, size=1, maximum=2, concurrency=1, queue_timeout_s=0.1)
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture
def session(pool: Pool) -> PooledSession:
    return PooledSession(pool, SessionLimits(run_limit_s=0.1, eager=True), grace_s=0.1)


def worker_of(session: PooledSession) -> FakeWorker:
    worker = session._worker
    assert isinstance(worker, FakeWorker)
    return worker


async def test_leases_no_worker_before_the_first_block(pool: Pool, session: PooledSession) -> None:
    nothing = await session.flush()
    assert (nothing.status, nothing.container) == ("ok", None)
    assert pool.stats().leases == 0
    await session.invoke("1")
    assert pool.stats().leases == 1


async def test_an_announcement_ends_at_the_first_block_or_at_close(pool: Pool) -> None:
    limits = SessionLimits(run_limit_s=0.1, eager=True)
    first, second = (PooledSession(pool, limits, grace_s=0.1) for _ in range(2))
    for session in (first, second):
        await session.prepare()
        await session.prepare()  # only the first call counts
    assert (pool.stats().expected, pool.stats().leases) == (2, 0)
    await first.invoke("1")
    assert (pool.stats().expected, pool.stats().leases) == (1, 1)
    await second.close()
    assert (pool.stats().expected, pool.stats().leases) == (0, 1)
    await second.prepare()
    assert pool.stats().expected == 0
    await first.close()


async def test_sends_each_block_to_the_worker_immediately(session: PooledSession) -> None:
    await session.invoke("a")
    await session.invoke("b")
    worker = worker_of(session)
    worker.answers.put_nowait(result(stdout="out"))
    flushed = await session.flush()
    assert (flushed.stdout, flushed.container) == ("out", worker.name)
    assert worker.sent == [
        {"op": "open", "run_limit_s": 0.1, "eager": True},
        {"op": "invoke", "code": "a"},
        {"op": "invoke", "code": "b"},
        {"op": "flush"},
    ]


async def test_passes_live_output_on_if_it_is_wanted(session: PooledSession) -> None:
    await session.invoke("a")
    worker = worker_of(session)
    for answer in (output_frame("1"), output_frame("2"), result(stdout="12")):
        worker.answers.put_nowait(answer)
    chunks: list[OutputChunk] = []
    assert (await session.flush(chunks.append)).stdout == "12"
    assert chunks == [OutputChunk("stdout", "1"), OutputChunk("stdout", "2")]
    assert worker.sent[-1] == {"op": "flush", "live_output": True}
    await session.invoke("b")
    worker.answers.put_nowait(result())
    await session.flush()
    assert worker.sent[-1] == {"op": "flush"}


@pytest.mark.parametrize("wanted", [True, False], ids=["too much", "not wanted"])
async def test_drops_a_worker_that_sends_output_against_the_protocol(
    session: PooledSession, wanted: bool
) -> None:
    await session.invoke("a")
    worker = worker_of(session)
    for _ in range(2 * MAX_LIVE_BYTES // 4096 + 1 if wanted else 1):
        worker.answers.put_nowait(output_frame("x" * 4096))
    worker.answers.put_nowait(result())
    chunks: list[OutputChunk] = []
    failed = await (session.flush(chunks.append) if wanted else session.flush())
    assert failed.status == "sandbox_error"
    assert failed.stderr in (
        "the worker sent more live output than its limit",
        "the worker sent output that was not requested",
    )
    await until(lambda: worker.destroyed == 1)


@pytest.mark.parametrize(
    "answer", [SandboxError("died"), Ready(op="ready", python="3", pid=1)], ids=["dies", "unexpected frame"]
)
async def test_reports_a_broken_worker_once(
    pool: Pool, session: PooledSession, answer: SandboxError | Ready
) -> None:
    await session.invoke("a")
    broken = worker_of(session)
    broken.answers.put_nowait(answer)
    failed = await session.flush()
    assert failed.status == "sandbox_error"
    assert failed.stderr
    await session.invoke("b")
    worker_of(session).answers.put_nowait(result())
    assert (await session.flush()).status == "ok"
    assert worker_of(session) is not broken
    assert broken.destroyed == 1
    assert pool.stats().kills == {"sandbox_error": 1}


async def test_drops_a_silent_worker_after_the_run_limit_and_the_grace(session: PooledSession) -> None:
    await session.invoke("a")
    failed = await session.flush()
    assert (failed.status, failed.stderr) == ("sandbox_error", "the worker did not answer in time")


async def test_reports_a_worker_lost_between_blocks_at_the_flush(session: PooledSession) -> None:
    await session.invoke("a")
    worker_of(session).close()
    await session.invoke("b")
    await session.invoke("c")
    assert (await session.flush()).status == "sandbox_error"
    assert (await session.flush()).status == "ok"


async def test_too_much_code_is_reported_as_an_error_of_the_code(session: PooledSession) -> None:
    await session.invoke("x" * MAX_CODE_BYTES)
    failed = await session.flush()
    assert failed.status == "error"
    assert "larger than" in failed.stderr


async def test_a_cancelled_flush_destroys_the_worker(pool: Pool, session: PooledSession) -> None:
    await session.invoke("a")
    worker = worker_of(session)
    flush = asyncio.create_task(session.flush())
    await asyncio.sleep(0)
    flush.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flush
    await until(lambda: worker.destroyed == 1)
    assert pool.stats().kills == {"cancelled": 1}
    await session.invoke("b")  # may depend on lost variables
    lost = await session.flush()
    message = "an earlier call was cancelled, which ended its session"
    assert (lost.status, lost.stderr) == ("sandbox_error", message)
    await session.invoke("c")
    worker_of(session).answers.put_nowait(result())
    assert (await session.flush()).status == "ok"


async def waiting_block(pool: Pool, session: PooledSession) -> tuple[list[SandboxWorker], asyncio.Task[None]]:
    """Lease all workers, and start a block that waits for one."""
    leased = [await pool.lease(), await pool.lease()]
    invoke = asyncio.create_task(session.invoke("a"))
    await asyncio.sleep(0)
    return leased, invoke


async def test_a_cancelled_first_block_leaves_the_session_unchanged(
    pool: Pool, session: PooledSession
) -> None:
    leased, invoke = await waiting_block(pool, session)
    invoke.cancel()
    with pytest.raises(asyncio.CancelledError):
        await invoke
    assert (await session.flush()).status == "ok"
    for worker in leased:
        await pool.release(worker)


async def test_a_cancelled_block_is_reported_at_the_flush(
    session: PooledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(message: object) -> None:
        await asyncio.Event().wait()

    await session.invoke("a")
    monkeypatch.setattr(worker_of(session), "send", hang)
    invoke = asyncio.create_task(session.invoke("b"))
    await asyncio.sleep(0)
    invoke.cancel()
    with pytest.raises(asyncio.CancelledError):
        await invoke
    failed = await session.flush()
    assert (failed.status, failed.stderr) == (
        "sandbox_error",
        "an earlier call was cancelled, which ended its session",
    )


async def test_a_session_closed_while_it_waits_for_a_worker_keeps_none(
    pool: Pool, session: PooledSession
) -> None:
    leased, invoke = await waiting_block(pool, session)
    await session.close()
    for worker in leased:
        await pool.release(worker)
    with pytest.raises(SandboxError, match="closed"):
        await invoke
    await until(lambda: pool.stats().leased == 0)


async def test_close_releases_the_worker_and_may_be_called_twice(pool: Pool, session: PooledSession) -> None:
    await session.invoke("a")
    worker = worker_of(session)
    await session.close()
    await session.close()
    assert worker.closed
    with pytest.raises(SandboxError, match="closed"):
        await session.invoke("b")


async def test_the_first_block_raises_if_the_pool_is_full(pool: Pool, session: PooledSession) -> None:
    leased = [await pool.lease(), await pool.lease()]
    with pytest.raises(QueueTimeoutError):
        await session.invoke("a")
    assert (await session.flush()).status == "ok"
    for worker in leased:
        await pool.release(worker)


async def test_counts_kills_at_limits(pool: Pool, session: PooledSession) -> None:
    await session.invoke("a")
    worker_of(session).answers.put_nowait(result("oom"))
    assert (await session.flush()).status == "oom"
    assert pool.stats().kills == {"oom": 1}


async def test_freezes_the_worker_once_it_has_settled(session: PooledSession, factory: Factory) -> None:
    factory.made[0].freezable = True
    await session.invoke("a")
    worker = worker_of(session)
    assert worker.sent[0]["report_settled"] is True
    worker.answers.put_nowait(result())
    await session.flush()
    await asyncio.sleep(0.01)
    assert worker.frozen == 0
    worker.answers.put_nowait(Settled(op="settled"))
    await until(lambda: worker.frozen == 1)
    await session.invoke("b")
    for answer in (result(stdout="b"), Settled(op="settled")):
        worker.answers.put_nowait(answer)
    assert (await session.flush()).stdout == "b"
    await until(lambda: worker.frozen == 2)
    await session.close()


async def test_does_not_freeze_a_worker_with_pending_blocks(session: PooledSession, factory: Factory) -> None:
    factory.made[0].freezable = True
    await session.invoke("a")
    worker = worker_of(session)
    worker.answers.put_nowait(result())
    await session.flush()
    await session.invoke("b")
    worker.answers.put_nowait(Settled(op="settled"))
    worker.answers.put_nowait(result(stdout="b"))
    assert (await session.flush()).stdout == "b"
    assert worker.frozen == 0
    await session.close()


@pytest.mark.parametrize("answer", [SandboxError("died"), result()], ids=["dies", "unexpected frame"])
async def test_a_failure_to_settle_is_reported_by_the_next_flush(
    session: PooledSession, factory: Factory, answer: SandboxError | Result
) -> None:
    factory.made[0].freezable = True
    await session.invoke("a")
    worker = worker_of(session)
    worker.answers.put_nowait(result())
    assert (await session.flush()).status == "ok"
    worker.answers.put_nowait(answer)
    await asyncio.sleep(0.01)
    await session.invoke("b")
    failed = await session.flush()
    assert failed.status == "sandbox_error"
    assert ("died" if isinstance(answer, SandboxError) else "before the flush") in failed.stderr
    assert worker.closed
    await session.close()


async def test_a_worker_of_an_older_image_is_not_frozen(session: PooledSession, factory: Factory) -> None:
    factory.made[0].freezable = True
    await session.invoke("a")
    worker = worker_of(session)
    worker.answers.put_nowait(result())
    await session.flush()
    for output in ("b", "c"):
        await session.invoke("more")
        flush = asyncio.create_task(session.flush())
        await until(lambda: worker.sent[-1] == {"op": "flush"})
        worker.answers.put_nowait(result(stdout=output))  # without a frame "settled" before it
        assert (await flush).stdout == output
    assert (worker.freezable, worker.frozen) == (False, 0)
    assert "rebuild it" in worker.reason
    await session.close()


@pytest.fixture
def asking(pool: Pool) -> PooledSession:
    return PooledSession(pool, SessionLimits(run_limit_s=0.2, tool_wait_s=0.0), 0.2, RecordingHost())


async def suspended(session: PooledSession) -> tuple[FakeWorker, asyncio.Task[ExecutionResult]]:
    """Start a flush whose code waits, and suspend the session."""
    await session.invoke("1")
    worker = worker_of(session)
    flushing = asyncio.create_task(session.flush())
    await until(lambda: {"op": "flush"} in worker.sent)
    worker.answers.put_nowait(Suspended(op="suspended"))
    await session.suspend()
    return worker, flushing


async def test_suspended_flush_has_no_deadline(asking: PooledSession) -> None:
    worker, flushing = await suspended(asking)
    assert worker.frozen == 1
    await asyncio.sleep(0.6)
    assert not flushing.done()
    await asking.resume()
    worker.answers.put_nowait(result(stdout="out"))
    assert (await flushing).stdout == "out"
    assert [frame["op"] for frame in worker.sent][-3:] == ["flush", "suspend", "resume"]


async def test_resumed_flush_has_the_rest_of_its_time(asking: PooledSession) -> None:
    _, flushing = await suspended(asking)
    await asking.resume()
    assert (await flushing).status == "sandbox_error"


async def test_worker_that_does_not_stop_its_code_is_not_frozen(
    asking: PooledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.sandbox.session._SUSPEND_WITHIN_S", 0.01)
    await asking.invoke("1")
    worker = worker_of(asking)
    flushing = asyncio.create_task(asking.flush())
    await until(lambda: {"op": "flush"} in worker.sent)
    await asking.suspend()
    assert worker.frozen == 0
    worker.answers.put_nowait(result())
    await flushing


async def test_unrequested_report_of_a_suspension_changes_nothing(asking: PooledSession) -> None:
    await asking.invoke("1")
    worker = worker_of(asking)
    worker.answers.put_nowait(Suspended(op="suspended"))
    worker.answers.put_nowait(result(stdout="out"))
    assert (await asking.flush()).stdout == "out"
    assert worker.frozen == 0
