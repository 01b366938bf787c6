"""Labels that say who owns a container, and the removal of those whose owner is provably dead."""

from __future__ import annotations

import os
import time

import docker

from service.processes import boot_id, pid_namespace, process_start

from .container import Daemon, remove_container
from .docker_settings import DockerSandboxSettings

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
