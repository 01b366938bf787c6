"""Sandbox of Docker containers, and the removal of orphaned ones.

Labels on each container identify its owner. At its start a sandbox removes the containers whose owner is
known to be dead.
"""

from __future__ import annotations

import os
import time

import docker

from service.common.process_id import boot_id, pid_namespace, process_start
from service.sandbox.base import SandboxError
from service.sandbox.docker.container import Container, Daemon, remove_container
from service.sandbox.docker.freezer import Freezer
from service.sandbox.docker.settings import DockerSandboxSettings
from service.sandbox.isolation_checks import isolation_checks
from service.sandbox.pooled_sandbox import PooledSandbox

_APP = "ih-grpo.app"
_APP_VALUE = "sandbox"


def owner_labels(settings: DockerSandboxSettings) -> dict[str, str]:
    """Return the labels of containers that this process starts."""
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
    """Return whether a container with these labels is certainly no longer in use.

    This holds if its lifetime is over, if an instance of the same name started it before the last boot, or if
    its owner was a process in our process namespace that has ended.
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


async def remove_orphans(daemon: Daemon, settings: DockerSandboxSettings, freezer: Freezer) -> int:
    """Remove the containers of dead owners and return their number.

    Raises:
        SandboxError: the daemon does not answer.
    """

    def sweep(client: docker.APIClient) -> int:
        removed = 0
        for container in client.containers(all=True, filters={"label": f"{_APP}={_APP_VALUE}"}):
            if owner_is_dead(container.get("Labels") or {}, settings):
                freezer.thaw(container["Id"])  # not every runtime can kill a frozen container
                remove_container(client, container["Id"])
                removed += 1
        return removed

    return await daemon.call(sweep)


class DockerSandbox(PooledSandbox):
    """A ``Sandbox`` on a Docker daemon. Only the process that runs it needs access to the daemon's socket."""

    def __init__(self, settings: DockerSandboxSettings | None = None) -> None:
        self.settings = settings or DockerSandboxSettings()
        self._daemon = Daemon(self.settings)
        # gVisor provides its own files in /proc and /dev, which say nothing about the machine.
        is_gvisor = self.settings.runtime == "runsc"
        self._freezer = Freezer(
            self.settings.cgroup_root,
            unavailable=None
            if self.settings.runtime is None
            else "it is used with Docker's default runtime only",
        )
        checks = [c for c in isolation_checks(self.settings) if not is_gvisor or c.name != "masked files"]
        super().__init__(self.settings, self._create, checks)

    async def _create(self) -> Container:
        return await Container.start(self._daemon, self.settings, owner_labels(self.settings), self._freezer)

    async def start(self) -> None:
        """Remove orphaned containers, fill the pool and run the isolation checks.

        Raises:
            SandboxError: Docker does not answer, the image is missing, or a check failed. All containers are
                removed again.
        """
        try:
            self._pool.orphans_reaped += await remove_orphans(self._daemon, self.settings, self._freezer)
        except BaseException:
            await self.stop()
            raise
        await super().start()

    async def ready(self) -> bool:
        """Return whether the isolation checks passed, the daemon answers and containers are available."""
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
        self._freezer.close()
        self._daemon.close()
