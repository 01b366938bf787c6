from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from service.engines.base import EngineError
from trainer.ray.actor_pool import ActorPool, CallLostError


class Method:
    def __init__(self, function: Callable[..., Awaitable[Any]]) -> None:
        self.remote = lambda *arguments: asyncio.ensure_future(function(*arguments))


class Actor:
    """Fake Ray actor: its methods have a ``remote`` that returns an awaitable."""

    def __init__(self, run: Callable[[str], Awaitable[str]]) -> None:
        self.calls: list[str] = []

        async def recorded(what: str) -> str:
            self.calls.append(what)
            return await run(what)

        async def nothing() -> int:
            return 1

        self.run, self.start, self.stop = Method(recorded), Method(nothing), Method(nothing)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bool]]:
    """Actors killed through Ray with the no-restart flag, and cancelled calls."""
    killed: list[tuple[Any, bool]] = []
    monkeypatch.setattr("ray.kill", lambda actor, no_restart=True: killed.append((actor, no_restart)))
    monkeypatch.setattr("ray.cancel", lambda call: (killed.append((call, True)), call.cancel()))
    return killed


async def started(*actors: Actor, **changes: Any) -> ActorPool:
    left = list(actors)
    limits = {"attempts": 2, "call_timeout_s": 60.0, "start_timeout_s": 5.0, **changes}
    pool = ActorPool("run", lambda: left.pop(0), len(actors), **limits)
    await pool.start()
    return pool


async def echo(what: str) -> str:
    await asyncio.sleep(0)
    return what


async def die(what: str) -> str:
    raise ActorDiedError


async def hang(what: str) -> str:
    await asyncio.Event().wait()
    return what


async def break_down(what: str) -> str:
    raise RayTaskError("run", "traceback", EngineError("no memory")).as_instanceof_cause()


async def mistake(what: str) -> str:
    raise RayTaskError("run", "traceback", ValueError("no such marker")).as_instanceof_cause()


async def test_calls_go_to_least_busy_actor() -> None:
    actors = [Actor(echo), Actor(echo)]
    pool = await started(*actors)
    answers = await asyncio.gather(*(pool.call("run", str(i)) for i in range(6)))
    assert answers == ["0", "1", "2", "3", "4", "5"]
    assert [len(actor.calls) for actor in actors] == [3, 3]


@pytest.mark.parametrize(("trouble", "restarted"), [(die, False), (hang, True), (break_down, True)])
async def test_lost_call_is_retried_on_another_actor(
    ends: list[tuple[Any, bool]], trouble: Callable[[str], Awaitable[str]], restarted: bool
) -> None:
    bad, good = Actor(trouble), Actor(echo)
    pool = await started(bad, good, call_timeout_s=0.05)
    assert await pool.call("run", "x") == "x"
    assert (bad.calls, good.calls) == (["x"], ["x"])
    assert ends == ([(bad, False)] if restarted else [])


async def test_call_lost_everywhere_reports_reason(ends: list[tuple[Any, bool]]) -> None:
    pool = await started(Actor(break_down), Actor(break_down))
    with pytest.raises(CallLostError, match="2 run actors failed, the last: EngineError: no memory"):
        await pool.call("run", "x")


async def test_exception_of_call_is_not_retried() -> None:
    first, second = Actor(mistake), Actor(mistake)
    pool = await started(first, second)
    with pytest.raises(ValueError, match="no such marker"):
        await pool.call("run", "x")
    assert len(first.calls) + len(second.calls) == 1


async def test_cancellation_reaches_actor(ends: list[tuple[Any, bool]]) -> None:
    pool = await started(Actor(hang))
    call = asyncio.create_task(pool.call("run", "x"))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(ends) == 1
    assert pool.busy == []


async def test_actor_that_fails_to_start_is_an_engine_error(ends: list[tuple[Any, bool]]) -> None:
    actor = Actor(echo)

    async def fail() -> None:
        raise RayTaskError(
            "start", "traceback", ValueError("model 'm' is not a checkpoint")
        ).as_instanceof_cause()

    actor.start = Method(fail)
    with pytest.raises(
        EngineError, match="a run actor failed to start: ValueError: model 'm' is not a checkpoint"
    ):
        await started(actor)


async def test_stop_ends_all_actors(ends: list[tuple[Any, bool]]) -> None:
    actors = [Actor(echo), Actor(echo)]
    pool = await started(*actors)
    await pool.stop()
    assert ends == [(actor, True) for actor in actors]
