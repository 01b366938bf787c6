from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from service.common.json import Json
from service.store.maintenance import STALE_S, StoreMaintenance
from service.store.responses import ResponseStore, is_dead, runner_id
from service.store.tables import responses
from tests.support.stored import Clock, dead_runner, stored


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(store_url: str, clock: Clock) -> AsyncGenerator[ResponseStore, None]:
    store = ResponseStore(store_url, clock=clock)
    await store.start()
    yield store
    async with store.engine.begin() as connection:
        await connection.execute(delete(responses))
    await store.stop()


@pytest.fixture
def maintenance(store: ResponseStore, clock: Clock) -> StoreMaintenance:
    return StoreMaintenance(store, max_bytes=10**9, clock=clock)


def failed(body: Json) -> Json:
    return {**body, "status": "failed"}


async def run_by(store: ResponseStore, runner: str) -> None:
    async with store.engine.begin() as connection:
        await connection.execute(update(responses).values(runner=runner))


def test_invisible_process_is_not_proven_dead() -> None:
    boot, namespace, pid, start = runner_id().split("/")
    assert not is_dead(f"other/{namespace}/1/1")
    assert not is_dead(f"{boot}/pid:[1]/1/1")
    assert not is_dead("")
    assert is_dead(f"{boot}/{namespace}/{pid}/{start}0")


async def test_run_of_a_dead_process_is_failed_immediately(
    store: ResponseStore, maintenance: StoreMaintenance
) -> None:
    await store.put(stored("resp_1", status="in_progress"))
    await store.put(stored("resp_2"))
    await run_by(store, dead_runner())
    assert await maintenance.fail_interrupted(failed) == 1
    assert await maintenance.fail_interrupted(failed) == 0
    cut, done = await store.get("resp_1", "me"), await store.get("resp_2", "me")
    assert cut is not None
    assert done is not None
    assert (cut.status, cut.body["status"], done.status) == ("failed", "failed", "completed")


async def test_run_of_a_live_process_is_kept(
    store: ResponseStore, maintenance: StoreMaintenance, clock: Clock
) -> None:
    await store.put(stored("resp_1", status="in_progress"))
    clock.now += STALE_S + 1
    await maintenance.heartbeat()
    assert await maintenance.fail_interrupted(failed) == 0


async def test_remote_run_is_failed_without_heartbeat(
    store: ResponseStore, maintenance: StoreMaintenance, clock: Clock
) -> None:
    await store.put(stored("resp_1", status="queued"))
    await run_by(store, "boot/elsewhere/1/1")
    clock.now += STALE_S - 1
    await maintenance.heartbeat()  # updates only its own runs
    assert await maintenance.fail_interrupted(failed) == 0
    clock.now += 2
    assert await maintenance.fail_interrupted(failed) == 1


async def test_reports_runs_ended_by_other_servers(
    store: ResponseStore, maintenance: StoreMaintenance
) -> None:
    for number in range(3):
        await store.put(stored(f"resp_{number}", status="in_progress"))
    await store.change("resp_0", status="cancelled", body={})
    await store.delete("resp_1", "me")
    assert await maintenance.ended(["resp_0", "resp_1", "resp_2"]) == {"resp_0", "resp_1"}
    assert await maintenance.ended([]) == set()


async def test_expired_responses_are_removed(
    store: ResponseStore, maintenance: StoreMaintenance, clock: Clock
) -> None:
    await store.put(stored("resp_1"))
    await store.put(stored("resp_2", expires_at=2_000_000.0))
    assert await maintenance.expire() == 0
    clock.now = 1_086_400.0
    assert await maintenance.expire() == 1
    assert await store.get("resp_2", "me") is not None


async def test_oldest_finished_responses_are_removed_above_the_size_limit(
    store: ResponseStore, clock: Clock
) -> None:
    for number in range(6):
        status = "in_progress" if number == 0 else "completed"
        await store.put(stored(f"resp_{number}", created_at=1.0 + number, text="x" * 4000, status=status))
    assert await StoreMaintenance(store, max_bytes=16_000, clock=clock).shrink() == 2
    left = [number for number in range(6) if await store.get(f"resp_{number}", "me")]
    assert left == [0, 3, 4, 5]


async def test_events_count_towards_the_size(store: ResponseStore, clock: Clock) -> None:
    await store.put(stored("resp_1", status="in_progress"))
    text = "".join(map(chr, range(40, 4000)))
    await store.add_events("resp_1", [{"sequence_number": 0, "delta": text * 10}])
    await store.change("resp_1", status="completed", body={})
    assert await StoreMaintenance(store, max_bytes=20_000, clock=clock).shrink() == 1


async def test_vacuum_shrinks_the_file(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    clock = Clock()
    store = ResponseStore(f"sqlite:///{path}", clock=clock)
    await store.start()
    for number in range(20):
        await store.put(stored(f"resp_{number}", text="x" * 100_000))
    clock.now = 2_000_000.0
    before = path.stat().st_size + path.with_name("responses.db-wal").stat().st_size
    assert await StoreMaintenance(store, max_bytes=10**9, clock=clock).expire() == 20
    after = path.stat().st_size + path.with_name("responses.db-wal").stat().st_size
    assert before > 2_000_000
    assert after < 200_000
    await store.stop()
