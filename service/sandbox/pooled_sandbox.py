"""Sandbox with a pool of workers, the base of the Docker and bubblewrap sandboxes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from service.sandbox.base import Session, SessionLimits
from service.sandbox.files import FileSession
from service.sandbox.isolation_checks import IsolationCheck, check_isolation
from service.sandbox.pool import Pool, PoolStats
from service.sandbox.pooled_files import PooledFileSession
from service.sandbox.session import PooledSession
from service.sandbox.settings import PoolSettings
from service.sandbox.worker_protocol import SandboxWorker
from service.tools.base import ToolHost


class PooledSandbox:
    """A ``Sandbox`` that gives each session its own worker.

    No other session uses it, unless ``reuse`` is set: then it is reset after a session without tools.
    """

    def __init__(
        self,
        settings: PoolSettings,
        create: Callable[[], Awaitable[SandboxWorker]],
        checks: Sequence[IsolationCheck],
    ) -> None:
        self._limits = settings
        self._checks = checks
        self._checked = False
        self._pool = Pool(
            create,
            size=settings.pool_size,
            maximum=settings.max_containers,
            concurrency=settings.start_concurrency,
            queue_timeout_s=settings.queue_timeout_s,
            reuse_for_s=settings.max_lifetime_s / 2 if settings.reuse else 0.0,
            idle_for_s=settings.max_lifetime_s / 2,
        )

    async def start(self) -> None:
        """Fill the pool and run the isolation checks in one of its workers.

        Raises:
            SandboxError: no worker can be started, or a check failed. All workers are removed again, and
                ``ready`` stays false.
        """
        try:
            await self._pool.start()
            await check_isolation(self.session, self._checks)
        except BaseException:
            await self.stop()
            raise
        self._checked = True

    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> Session:
        return PooledSession(self._pool, self._limits.clip(limits), self._limits.grace_s, tools)

    def file_session(self, limits: SessionLimits) -> FileSession:
        return PooledFileSession(self._pool, limits, self._limits)

    async def ready(self) -> bool:
        """Return whether the isolation checks passed and sandboxes are available."""
        return self._checked and self._pool.healthy

    def stats(self) -> PoolStats:
        return self._pool.stats()

    async def stop(self) -> None:
        self._checked = False
        await self._pool.stop()
