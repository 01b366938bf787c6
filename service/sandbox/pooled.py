"""What all backends that keep a pool of workers have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from .base import Session, SessionLimits
from .pool import Pool, PoolStats
from .pool_settings import PoolSettings
from .probes import Probe, prove_isolation
from .session import PooledSession
from .worker import Worker


class PooledSandbox:
    """A ``Sandbox`` whose sessions each get a worker that nobody had before and nobody gets after."""

    def __init__(
        self, settings: PoolSettings, create: Callable[[], Awaitable[Worker]], walls: Sequence[Probe]
    ) -> None:
        self._limits = settings
        self._walls = walls
        self._proven = False
        self._pool = Pool(
            create,
            size=settings.pool_size,
            maximum=settings.max_containers,
            concurrency=settings.start_concurrency,
            queue_timeout_s=settings.queue_timeout_s,
        )

    async def start(self) -> None:
        """Fill the pool, and prove the isolation in a real sandbox.

        Raises:
            SandboxError: none can be started, or a proof failed. Nothing is left, and ``ready`` stays false.
        """
        try:
            await self._pool.start()
            await prove_isolation(self.session, self._walls)
        except BaseException:
            await self.stop()
            raise
        self._proven = True

    def session(self, limits: SessionLimits) -> Session:
        clipped = min(limits.run_limit_s, self._limits.run_limit_ceiling_s)
        limits = SessionLimits(run_limit_s=clipped, eager=limits.eager)
        return PooledSession(self._pool, limits, self._limits.grace_s)

    async def ready(self) -> bool:
        """True once the isolation is proven, while sandboxes can be had."""
        return self._proven and self._pool.healthy

    def stats(self) -> PoolStats:
        return self._pool.stats()

    async def stop(self) -> None:
        self._proven = False
        await self._pool.stop()
