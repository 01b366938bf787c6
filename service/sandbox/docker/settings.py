"""Settings of Docker containers, and the address of the Docker daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pydantic import Field

from service.sandbox.settings import PoolSettings

USUAL_SOCKET: Final = Path("/var/run/docker.sock")
OWN_SOCKET: Final = Path(os.environ.get("IHGRPO_DOCKER_RUN", "/run/ih-grpo"), "docker.sock")
"""Socket of the daemon that `make serve` starts if no other answers (scripts/ensure-docker)."""
DEFAULT_IMAGE: Final = "ih-grpo-sandbox:latest"


def build_command(image: str) -> str:
    """Return the shell command that builds ``image``, for messages."""
    return "ih-grpo sandbox build" + ("" if image == DEFAULT_IMAGE else f" --image {image}")


def default_docker_host() -> str:
    """Return ``DOCKER_HOST`` if set, else the usual socket, or ``OWN_SOCKET`` if only that one exists."""
    only_own = OWN_SOCKET.is_socket() and not USUAL_SOCKET.is_socket()
    return os.environ.get("DOCKER_HOST") or f"unix://{OWN_SOCKET if only_own else USUAL_SOCKET}"


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
