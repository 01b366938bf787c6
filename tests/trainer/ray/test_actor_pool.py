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
    """Stands in for an actor of Ray's: its methods have a ``remote`` that gives something to await."""

    def __init__(self, play: Callable[[str], Awaitable[str]]) -> None:
        self.calls: list[str] = []

        async def recorded(what: str) -> str:
            self.calls.append(what)
            return await play(what)

        async def nothing() -> int:
            return 1

        self.play, self.start, self.stop = Method(recorded), Method(nothing), Method(nothing)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bool]]:
    """What Ray was told to kill, and whether for good; or to cancel."""
    told: list[tuple[Any, bool]] = []
    monkeypatch.setattr("ray.kill", lambda actor, no_restart=True: told.append((actor, no_restart)))
    monkeypatch.setattr("ray.cancel", lambda call: (told.append((call, True)), call.cancel()))
    return told


async def started(*actors: Actor, **changes: Any) -> ActorPool:
    left = list(actors)
    limits = {"attempts": 2, "call_timeout_s": 60.0, "start_timeout_s": 5.0, **changes}
    replicas = ActorPool("play", lambda: left.pop(0), len(actors), **limits)
    await replicas.start()
    return replicas


async def echo(what: str) -> str:
    await asyncio.sleep(0)
    return what


async def die(what: str) -> str:
    raise ActorDiedError


async def hang(what: str) -> str:
    await asyncio.Event().wait()
    return what


async def break_down(what: str) -> str:
    raise RayTaskError("play", "traceback", EngineError("no memory")).as_instanceof_cause()


async def mistake(what: str) -> str:
    raise RayTaskError("play", "traceback", ValueError("no such marker")).as_instanceof_cause()


async def test_calls_go_to_the_least_busy() -> None:
    actors = [Actor(echo), Actor(echo)]
    replicas = await started(*actors)
    answers = await asyncio.gather(*(replicas.call("play", str(i)) for i in range(6)))
    assert answers == ["0", "1", "2", "3", "4", "5"]
    assert [len(actor.calls) for actor in actors] == [3, 3]


@pytest.mark.parametrize(("trouble", "restarted"), [(die, False), (hang, True), (break_down, True)])
async def test_a_call_that_is_lost_is_made_on_another(
    ends: list[tuple[Any, bool]], trouble: Callable[[str], Awaitable[str]], restarted: bool
) -> None:
    bad, good = Actor(trouble), Actor(echo)
    replicas = await started(bad, good, call_timeout_s=0.05)
    assert await replicas.call("play", "x") == "x"
    assert (bad.calls, good.calls) == (["x"], ["x"])
    assert ends == ([(bad, False)] if restarted else [])


async def test_a_call_that_is_lost_everywhere_says_why(ends: list[tuple[Any, bool]]) -> None:
    replicas = await started(Actor(break_down), Actor(break_down))
    with pytest.raises(CallLostError, match="2 play actors failed, the last: EngineError: no memory"):
        await replicas.call("play", "x")


async def test_what_another_would_raise_too_is_not_tried_again() -> None:
    first, second = Actor(mistake), Actor(mistake)
    replicas = await started(first, second)
    with pytest.raises(ValueError, match="no such marker"):
        await replicas.call("play", "x")
    assert len(first.calls) + len(second.calls) == 1


async def test_a_call_that_is_cancelled_is_cancelled_there(ends: list[tuple[Any, bool]]) -> None:
    replicas = await started(Actor(hang))
    call = asyncio.create_task(replicas.call("play", "x"))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(ends) == 1
    assert replicas.busy == []


async def test_one_that_does_not_start_is_an_error_of_the_engine(ends: list[tuple[Any, bool]]) -> None:
    actor = Actor(echo)

    async def fail() -> None:
        raise RayTaskError(
            "start", "traceback", ValueError("model 'm' is not a checkpoint")
        ).as_instanceof_cause()

    actor.start = Method(fail)
    with pytest.raises(
        EngineError, match="a play actor failed to start: ValueError: model 'm' is not a checkpoint"
    ):
        await started(actor)


async def test_stopping_ends_all(ends: list[tuple[Any, bool]]) -> None:
    actors = [Actor(echo), Actor(echo)]
    replicas = await started(*actors)
    await replicas.stop()
    assert ends == [(actor, True) for actor in actors]
