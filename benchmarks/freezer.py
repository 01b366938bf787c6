"""Time to freeze and to thaw a container: through its cgroup, and by Docker's own pause.

    DOCKER_HOST=unix:///... python benchmarks/freezer.py

Both use the kernel's freezer. The container has the supervisor and the two namespace processes of an idle
session, which are stopped. Freezing lasts until the kernel reports that all processes are frozen.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import docker

from service.sandbox.base import SandboxError, SessionLimits
from service.sandbox.docker.container import Container
from service.sandbox.docker.freezer import DEFAULT_ROOT, FreezerCgroup
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DEFAULT_IMAGE, DockerSandboxSettings
from service.sandbox.session import PooledSession


def milliseconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def freeze(cgroup: FreezerCgroup) -> None:
    cgroup.freeze()
    while not cgroup.is_frozen():
        time.sleep(0.00005)


def measure(container: str, root: Path, host: str, rounds: int) -> dict[str, list[float]]:
    """Return the times of each action in milliseconds; the actions alternate.

    Raises:
        SandboxError: the container's cgroup is not reachable.
    """
    cgroup = FreezerCgroup.find(root, container)
    if cgroup is None:
        raise SandboxError(f"the cgroup of container {container[:12]} is not under {root}")
    client = docker.APIClient(base_url=host, version="auto")
    actions: dict[str, Callable[[], object]] = {
        f"cgroup v{cgroup.version}, freeze": lambda: freeze(cgroup),
        f"cgroup v{cgroup.version}, thaw": cgroup.thaw,
        "docker pause": lambda: client.pause(container),
        "docker unpause": lambda: client.unpause(container),
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(milliseconds(action))
    client.close()
    return times


async def run(arguments: argparse.Namespace) -> dict[str, list[float]]:
    settings = DockerSandboxSettings(
        image=arguments.image,
        pool_size=1,
        max_containers=2,
        start_timeout_s=600,
        daemon_timeout_s=120,
        instance=f"freezer-{os.getpid()}",
    )
    sandbox = DockerSandbox(settings)
    await sandbox.start()
    try:
        session = sandbox.session(SessionLimits(run_limit_s=20))
        await session.invoke("x = 1")
        await session.flush()
        await asyncio.sleep(5)  # the next checkpoint is made
        if not isinstance(session, PooledSession) or not isinstance(session._worker, Container):
            raise TypeError("not a session in a container")
        worker = session._worker
        worker._thaw()
        times = measure(worker.id, arguments.cgroup_root, settings.docker_host, arguments.rounds)
        await session.close()
        return times
    finally:
        await sandbox.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--cgroup-root", type=Path, default=DEFAULT_ROOT)
    parser.add_argument("--image", default=DEFAULT_IMAGE)
    arguments = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, Linux {platform.release()}, "
        f"Docker {docker.from_env().version()['Version']}"
    )
    for name, times in asyncio.run(run(arguments)).items():
        ordered = sorted(times)
        p95 = ordered[len(ordered) * 95 // 100]
        print(f"{name:20} p50 {statistics.median(times):7.3f} ms  p95 {p95:7.3f} ms")


if __name__ == "__main__":
    main()
