"""Sessions in single-use Docker containers.

Labels that say who owns a container, and the removal of those whose owner is provably dead.
"""

from __future__ import annotations

import os
import time

import docker

from service.common.process_id import boot_id, pid_namespace, process_start
from service.sandbox.base import SandboxError
from service.sandbox.docker.container import Container, Daemon, remove_container
from service.sandbox.docker.settings import DockerSandboxSettings
from service.sandbox.isolation_checks import probes
from service.sandbox.pool import PoolStats
from service.sandbox.session import PooledSandbox

_APP = "ih-grpo.app"
_APP_VALUE = "sandbox"


def owner_labels(settings: DockerSandboxSettings) -> dict[str, str]:
    """Labels of every container that this process starts."""
    return {
        _APP: _APP_VALUE,
        "ih-grpo.instance": settings.instance,
        "ih-grpo.boot": boot_id(),
        "ih-grpo.pid-namespace": pid_namespace(),
        "ih-grpo.pid": str(os.getpid()),
        "ih-grpo.pid-start": process_start(os.getpid()) or "",
        "ih-grpo.deadline": str(int(time.time() + settings.max_lifetime_s)),
    }


def owner_is_dead(labels: dict[str, str], settings: DockerSandboxSettings) -> bool:
    """Is it proven that nobody uses this container any more?

    It is if its lifetime is over; if a runner of our name made it before this boot; or if its owner would
    have to be a process that we could see, and is not there.
    """
    deadline = labels.get("ih-grpo.deadline", "")
    if deadline.isdigit() and int(deadline) < time.time():
        return True
    if labels.get("ih-grpo.boot") != boot_id():
        return labels.get("ih-grpo.instance") == settings.instance
    if labels.get("ih-grpo.pid-namespace") != pid_namespace():
        return False
    pid = labels.get("ih-grpo.pid", "")
    return pid.isdigit() and process_start(int(pid)) != labels.get("ih-grpo.pid-start")


async def remove_orphans(daemon: Daemon, settings: DockerSandboxSettings) -> int:
    """Remove the containers of dead owners and say how many there were.

    Raises:
        SandboxError: the daemon does not answer.
    """

    def sweep(client: docker.APIClient) -> int:
        removed = 0
        for container in client.containers(all=True, filters={"label": f"{_APP}={_APP_VALUE}"}):
            if owner_is_dead(container.get("Labels") or {}, settings):
                remove_container(client, container["Id"])
                removed += 1
        return removed

    return await daemon.call(sweep)


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
