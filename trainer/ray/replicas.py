"""Like actors on a Ray cluster, and calls that outlive the loss of some."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final

import ray
import structlog
from ray.exceptions import RayError, RayTaskError

from service.engines.base import EngineError

_STOP_S: Final = 30.0
log = structlog.get_logger(__name__)


class CallLostError(Exception):
    """Every actor that a call was tried on died, hung or failed."""


class Replicas:
    """Actors that do the same. A call goes to the least busy; where that one is lost, to another.

    A call must not mind being made twice.

    Args:
        name: of what they do, for messages.
        make: places one actor; Ray starts it anew when it dies.
        count: how many.
        attempts: actors that one call is tried on.
        call_timeout_s: an actor that takes longer over one call is started anew.
        start_timeout_s: for placing and starting all.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Any],
        count: int,
        *,
        attempts: int,
        call_timeout_s: float,
        start_timeout_s: float,
    ) -> None:
        self._name = name
        self._make = make
        self._count = count
        self._attempts = attempts
        self._call_timeout_s = call_timeout_s
        self._start_timeout_s = start_timeout_s
        self._actors: list[Any] = []
        self._calls = [0] * count
        self.pids: list[int] = []
        """Of their processes, as they were started first."""

    @property
    def under_way(self) -> list[int]:
        """The actors that have calls under way, by number."""
        return [number for number, calls in enumerate(self._calls) if calls]

    async def start(self) -> None:
        """Place all, and wait until they can work.

        Raises:
            EngineError: the cluster has no room, or one does not start; the message says why.
        """
        self._actors = [self._make() for _ in range(self._count)]
        try:
            async with asyncio.timeout(self._start_timeout_s):
                self.pids = await asyncio.gather(*(actor.start.remote() for actor in self._actors))
        except TimeoutError:
            raise EngineError(
                f"Ray did not place and start {self._count} {self._name} actors in "
                f"{self._start_timeout_s:g} s: does the cluster have the CPUs, GPUs and resources that [ray] "
                f"asks for? See `ray status`"
            ) from None
        except RayError as error:
            raise EngineError(f"a {self._name} actor does not start: {_reason(error)}") from error

    async def stop(self) -> None:
        """Let them clean up, then end them."""
        actors, self._actors = self._actors, []
        if self.pids:  # else some were never placed
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    # One that is dead can't stop: of no matter now.
                    await asyncio.gather(*(actor.stop.remote() for actor in actors), return_exceptions=True)
        for actor in actors:
            ray.kill(actor)

    async def call(self, method: str, *arguments: object) -> Any:
        """What ``method`` returns on one of them; what it raises, but for an EngineError, is raised.

        Raises:
            CallLostError: it was tried on ``attempts`` actors.
        """
        tried: list[int] = []
        while len(tried) < self._attempts:
            number = self._least_busy(tried)
            tried.append(number)
            try:
                return await self._ask(number, method, arguments)
            except (RayError, TimeoutError) as error:
                if isinstance(error, RayTaskError) and not isinstance(error, EngineError):
                    raise error.cause from None  # as it was raised there
                lost = _reason(error)
                log.warning("actor_call_lost", actors=self._name, actor=number, call=method, reason=lost)
        raise CallLostError(f"{len(tried)} {self._name} actors failed, the last: {lost}")

    def _least_busy(self, tried: Collection[int]) -> int:
        fresh = [number for number in range(self._count) if number not in tried] or range(self._count)
        return min(fresh, key=self._calls.__getitem__)

    async def _ask(self, number: int, method: str, arguments: tuple[object, ...]) -> Any:
        actor = self._actors[number]
        answer = getattr(actor, method).remote(*arguments)
        self._calls[number] += 1
        try:
            async with asyncio.timeout(self._call_timeout_s):
                return await answer
        except asyncio.CancelledError:
            ray.cancel(answer)
            raise
        except (EngineError, TimeoutError):
            # Its engine is broken, or it hangs. What else it has under way is tried elsewhere.
            ray.kill(actor, no_restart=False)
            raise
        finally:
            self._calls[number] -= 1


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0]}"
