"""Sessions in single-use Docker containers."""

from __future__ import annotations

from .base import SandboxError
from .container import Container, Daemon
from .docker_settings import DockerSandboxSettings
from .orphans import owner_labels, remove_orphans
from .pool import PoolStats
from .pooled import PooledSandbox
from .probes import probes

__all__ = ["DockerSandbox", "DockerSandboxSettings", "PoolStats"]


class DockerSandbox(PooledSandbox):
    """A ``Sandbox`` on a Docker daemon. Whoever runs it holds the daemon's socket, and nobody else need."""

    def __init__(self, settings: DockerSandboxSettings | None = None) -> None:
        self.settings = settings or DockerSandboxSettings()
        self._daemon = Daemon(self.settings)
        super().__init__(self.settings, self._create, probes(self.settings))

    async def _create(self) -> Container:
        return await Container.start(self._daemon, self.settings, owner_labels(self.settings))

    async def start(self) -> None:
        """Remove orphans, then as every pool.

        Raises:
            SandboxError: Docker does not answer, the image is missing, or a proof failed. Nothing is left.
        """
        try:
            self._pool.orphans_reaped += await remove_orphans(self._daemon, self.settings)
        except BaseException:
            await self.stop()
            raise
        await super().start()

    async def ready(self) -> bool:
        """True once the isolation is proven, while the daemon answers and containers can be had."""
        if not await super().ready():
            return False
        try:
            await self._daemon.call(lambda client: client.ping())
        except SandboxError:
            return False
        return True

    async def stop(self) -> None:
        await super().stop()
        await self._daemon.remove_leftovers()
        self._daemon.close()
