"""A pool of identical Ray actors whose calls are retried when an actor is lost."""

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
    """All actors that were tried for a call died, hung or failed."""


class ActorPool:
    """Identical actors. A call goes to the least busy actor, and to another one if that actor is lost.

    Calls must be safe to repeat.

    Args:
        name: purpose of the actors, for messages.
        make: creates one actor; Ray restarts it if it dies.
        count: number of actors.
        attempts: number of actors to try for one call.
        call_timeout_s: seconds for one call; an actor that takes longer is restarted.
        start_timeout_s: seconds for placing and starting all actors.
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
        """Process ids of the actors at their first start."""

    @property
    def busy(self) -> list[int]:
        """Indices of the actors with running calls."""
        return [number for number, calls in enumerate(self._calls) if calls]

    async def start(self) -> None:
        """Create all actors and wait until they are ready.

        Raises:
            EngineError: the cluster lacks resources, or an actor failed to start.
        """
        self._actors = [self._make() for _ in range(self._count)]
        try:
            async with asyncio.timeout(self._start_timeout_s):
                self.pids = await asyncio.gather(*(actor.start.remote() for actor in self._actors))
        except TimeoutError:
            raise EngineError(
                f"Ray did not place and start {self._count} {self._name} actors in "
                f"{self._start_timeout_s:g} s: check with `ray status` that the cluster has the CPUs, "
                f"GPUs and resources that [ray] requests"
            ) from None
        except RayError as error:
            raise EngineError(f"a {self._name} actor failed to start: {_reason(error)}") from error

    async def stop(self) -> None:
        """Let the actors clean up, then kill them."""
        actors, self._actors = self._actors, []
        if self.pids:  # otherwise some actors were never placed
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    # Errors of actors that are dead already do not matter.
                    await asyncio.gather(*(actor.stop.remote() for actor in actors), return_exceptions=True)
        for actor in actors:
            ray.kill(actor)

    async def call(self, method: str, *arguments: object) -> Any:
        """Call ``method`` on one actor and return its result. Exceptions other than EngineError propagate.

        Raises:
            CallLostError: ``attempts`` actors were tried.
        """
        tried: list[int] = []
        while len(tried) < self._attempts:
            number = self._least_busy(tried)
            tried.append(number)
            try:
                return await self._call_actor(number, method, arguments)
            except (RayError, TimeoutError) as error:
                if isinstance(error, RayTaskError) and not isinstance(error, EngineError):
                    raise error.cause from None  # the exception raised in the actor
                lost = _reason(error)
                log.warning("actor_call_lost", actors=self._name, actor=number, call=method, reason=lost)
        raise CallLostError(f"{len(tried)} {self._name} actors failed, the last: {lost}")

    def _least_busy(self, tried: Collection[int]) -> int:
        fresh = [number for number in range(self._count) if number not in tried] or range(self._count)
        return min(fresh, key=self._calls.__getitem__)

    async def _call_actor(self, number: int, method: str, arguments: tuple[object, ...]) -> Any:
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
            # The engine is broken or the actor hangs. Its other running calls are retried on other actors.
            ray.kill(actor, no_restart=False)
            raise
        finally:
            self._calls[number] -= 1


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0]}"
