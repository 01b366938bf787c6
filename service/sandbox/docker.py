"""Sessions in single-use Docker containers."""

from __future__ import annotations

import contextlib

from .base import SandboxError, Session, SessionLimits
from .container import Container, Daemon
from .docker_settings import DockerSandboxSettings
from .orphans import owner_labels, remove_orphans
from .pool import Pool, PoolStats
from .probes import prove_isolation
from .session import PooledSession

__all__ = ["DockerSandbox", "DockerSandboxSettings", "PoolStats"]


class DockerSandbox:
    """A ``Sandbox`` whose sessions each get a container that nobody had before and nobody gets after."""

    def __init__(self, settings: DockerSandboxSettings | None = None) -> None:
        self.settings = settings or DockerSandboxSettings()
        self._daemon = Daemon(self.settings)
        self._proven = False
        self._pool = Pool(
            lambda: Container.start(self._daemon, self.settings, owner_labels(self.settings)),
            size=self.settings.pool_size,
            maximum=self.settings.max_containers,
            concurrency=self.settings.start_concurrency,
            queue_timeout_s=self.settings.queue_timeout_s,
        )

    async def start(self) -> None:
        """Remove orphans, fill the pool, and prove the isolation in a real container.

        Raises:
            SandboxError: Docker does not answer, the image is missing, or a proof failed. Nothing is left.
        """
        try:
            self._pool.orphans_reaped += await remove_orphans(self._daemon, self.settings)
            await self._pool.start()
            await prove_isolation(self.session, self.settings)
        except BaseException:
            await self.stop()
            raise
        self._proven = True

    def session(self, limits: SessionLimits) -> Session:
        clipped = min(limits.run_limit_s, self.settings.run_limit_ceiling_s)
        limits = SessionLimits(run_limit_s=clipped, eager=limits.eager)
        return PooledSession(self._pool, limits, self.settings.grace_s)

    async def ready(self) -> bool:
        """True once the isolation is proven, while the daemon answers and containers can be had."""
        if not self._proven or not self._pool.healthy:
            return False
        with contextlib.suppress(SandboxError):
            await self._daemon.call(lambda client: client.ping())
            return True
        return False

    def stats(self) -> PoolStats:
        return self._pool.stats()

    async def stop(self) -> None:
        self._proven = False
        await self._pool.stop()
        self._daemon.close()
