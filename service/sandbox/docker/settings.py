"""Settings of Docker containers, and the address of the Docker daemon."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import Field

from service.sandbox.settings import PoolSettings

USUAL_SOCKET: Final = Path("/var/run/docker.sock")
OWN_SOCKET: Final = Path(os.environ.get("IHGRPO_DOCKER_RUN", "/run/ih-grpo"), "docker.sock")
"""Socket of the daemon that `make serve` starts if no other answers (scripts/ensure-docker)."""
PODMAN_SOCKET: Final = Path("/run/podman/podman.sock")
"""Socket of Podman as root."""
DEFAULT_IMAGE: Final = "ih-grpo-sandbox:latest"


def build_command(image: str) -> str:
    """Return the shell command that builds ``image``, for messages."""
    return "ih-grpo sandbox build" + ("" if image == DEFAULT_IMAGE else f" --image {image}")


class DockerAddress(NamedTuple):
    """Address of a Docker daemon, and the reason for choosing it."""

    host: str
    source: str = ""
    """``DOCKER_HOST`` or the Docker context; empty for a socket that was found at a known path."""


def known_sockets() -> list[Path]:
    """Return the paths at which Docker Engine, Docker Desktop, rootless Docker and Podman listen."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  never fails, unlike Path.home
    paths = [USUAL_SOCKET, OWN_SOCKET, home / ".docker/run/docker.sock", home / ".docker/desktop/docker.sock"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        paths += [Path(runtime, "docker.sock"), Path(runtime, "podman/podman.sock")]
    return [*paths, PODMAN_SOCKET]


def find_docker() -> DockerAddress:
    """Return the address of the Docker daemon.

    Tries in this order: ``DOCKER_HOST``, the current Docker context (``DOCKER_CONTEXT``, or the one that
    ``docker context use`` selected), and the first existing socket of ``known_sockets``. Without any it is
    the usual socket.
    """
    if host := os.environ.get("DOCKER_HOST"):
        return DockerAddress(host, "DOCKER_HOST")
    if found := _current_context():
        return found
    socket = next((path for path in known_sockets() if _is_socket(path)), USUAL_SOCKET)
    return DockerAddress(f"unix://{socket}")


def default_docker_host() -> str:
    """Return the address of the Docker daemon; see ``find_docker``."""
    return find_docker().host


def _current_context() -> DockerAddress | None:
    """Return the address in the current Docker context; None for the default context or an unreadable one."""
    from docker.context import Context
    from docker.context.config import get_current_context_name

    name = os.environ.get("DOCKER_CONTEXT") or get_current_context_name()
    try:
        context = Context.load_context(name)
    except Exception:  # docker-py raises this class for a damaged file
        return None
    host = context.Host if context is not None else None
    return DockerAddress(host, f"Docker context {name}") if host else None


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:  # missing, or in a folder of another user
        return False


class DockerSandboxSettings(PoolSettings):
    """Settings of a pool of Docker containers."""

    docker_host: str = Field(default_factory=default_docker_host, pattern=r"^(unix|tcp)://")
    """Address of the daemon: ``unix:///path`` or ``tcp://host:port`` without TLS."""
    image: str = DEFAULT_IMAGE
    """The sandbox image. It must exist; it is never pulled."""
    runtime: str | None = None
    """OCI runtime, by the name that the daemon knows it by; None for the daemon's default. A runtime that is
    missing or fails the isolation checks is an error; there is no fallback. ``runsc`` (gVisor) must be
    registered with ``--oci-seccomp --network=none``, and with ``--platform=ptrace`` if KVM is unavailable."""
    instance: str = Field(default_factory=lambda: os.uname().nodename, min_length=1, max_length=128)
    """Name of the owner. Two owners that share a daemon at the same time need different names."""
    cgroup_root: Path = Path("/sys/fs/cgroup")
    """Directory of the daemon's cgroups, as this process sees it. Through it containers are frozen between
    two runs. If they are not found there, code is stopped with SIGSTOP instead."""
    daemon_timeout_s: float = Field(default=20.0, gt=0)
    """Timeout of one request to the daemon, in seconds."""
    cpus: float = Field(default=1.0, gt=0)
    """CPU quota of a container, in cores."""
    max_files: int = Field(default=4096, ge=16)
    """Files and folders in each of /tmp and the work folder."""
    shared_memory_mb: int = Field(default=16, ge=1)
    """Size of /dev/shm, in megabytes."""
