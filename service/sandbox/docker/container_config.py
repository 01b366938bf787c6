"""Configuration of a sandbox container: its limits and isolation. No request can change them.

The isolation checks verify every limit from inside a container at the start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from service.sandbox.base import SandboxError
from service.sandbox.docker.settings import DockerSandboxSettings
from service.sandbox.worker_program import (
    INPUTS,
    MASKED_PATHS,
    WORK,
    address_space_bytes,
    fresh_uid,
    image_folder,
    worker_config,
)

_GVISOR = "runsc"
_EMPTY: Final = "ro,noexec,nosuid,nodev,size=4k,mode=0555"
_SENTRY_THREADS, _SENTRY_MB = 1024, 512
"""Allowance for gVisor's kernel, a process in the container's own cgroup: its threads and memory count
against the container's limits, and it dies if they are exhausted."""


@dataclass(frozen=True, slots=True)
class DaemonKind:
    """Differences of a daemon that the configuration of its containers must respect."""

    is_podman: bool = False
    maps_users: bool = False
    """Containers are in a user namespace, which has 65,536 uids. True of rootless daemons."""

    @classmethod
    def read(cls, version: Mapping[str, Any], info: Mapping[str, Any]) -> Self:
        """Return the kind of a daemon from its answers to ``/version`` and ``/info``."""
        components = [part.get("Name") for part in version.get("Components") or ()]
        options = info.get("SecurityOptions") or ()
        return cls(
            is_podman="Podman Engine" in components,
            maps_users=any(option.startswith(("name=rootless", "name=userns")) for option in options),
        )


def create_arguments(
    settings: DockerSandboxSettings, name: str, labels: dict[str, str], kind: DaemonKind | None = None
) -> dict[str, Any]:
    """Return the body of Docker's "create a container" request. ``kind`` is Docker as root if None.

    Raises:
        SandboxError: the daemon would ignore the runtime.
    """
    kind = kind or DaemonKind()
    if kind.is_podman and settings.runtime is not None:
        raise SandboxError(
            f"Podman ignores the runtime of a container, and would not use {settings.runtime}: leave it out, "
            "and set the runtime of all containers in Podman's containers.conf"
        )
    disk = f"rw,noexec,nosuid,nodev,size={settings.disk_mb}m,nr_inodes={settings.max_files},mode=1777"
    shared = f"rw,noexec,nosuid,nodev,size={settings.shared_memory_mb}m,nr_inodes=256,mode=1777"
    inputs = f"rw,noexec,nosuid,nodev,size={settings.inputs_mb}m,nr_inodes=256,mode=0755"
    memory, pids = settings.memory_mb << 20, settings.pids
    worker = {
        **worker_config(settings, fresh_uid(in_user_namespace=kind.maps_users)),
        "processes": settings.pids,
    }
    if settings.runtime == _GVISOR:
        # Exhausting the cgroup ends the whole container, so code gets lower limits of its own.
        pids += _SENTRY_THREADS
        memory += _SENTRY_MB << 20
        worker |= {"address_space_bytes": address_space_bytes(settings)}
    limits = {
        "core": 0,
        "memlock": 0,
        "msgqueue": 0,
        "nice": 0,
        "rtprio": 0,
        "nofile": settings.open_files,
        "sigpending": 1024,
    }
    host: dict[str, Any] = {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": disk, WORK: disk, INPUTS: inputs, "/dev/shm": shared},  # noqa: S108
        "ShmSize": settings.shared_memory_mb << 20,
        "Memory": memory,
        "MemorySwap": memory,  # memory and swap together: no swap
        "PidsLimit": pids,
        "NanoCpus": int(settings.cpus * 1e9),
        "CapDrop": ["ALL"],
        "CapAdd": [
            "SETUID",
            "SETGID",
            "KILL",
        ],  # for the supervisor only; code loses them with the change of uid
        "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp_profile(settings.runtime)}"],
        "MaskedPaths": list(MASKED_PATHS),
        "ReadonlyPaths": ["/proc/sys", "/proc/fs", "/proc/irq", "/proc/bus", "/proc/sysrq-trigger"],
        "Privileged": False,
        "IpcMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "CgroupnsMode": "private",
        "Binds": [],
        "Devices": [],
        "Ulimits": [{"Name": key, "Soft": value, "Hard": value} for key, value in limits.items()],
        "LogConfig": {"Type": "none"},
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": True,
        "Init": False,
    }
    if settings.runtime is not None:
        host["Runtime"] = settings.runtime
    if kind.is_podman:
        host |= _podman_options(host["Tmpfs"])
    return {
        "Image": settings.image,
        "Cmd": [json.dumps(worker)],
        "User": "0:0",
        "Hostname": "sandbox",
        "Env": ["PYTHONHASHSEED=0", "LANG=C.UTF-8", "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1"],
        "Labels": {**labels, "ih-grpo.name": name},
        "OpenStdin": True,
        "StdinOnce": True,  # ends the supervisor's input when the runner disconnects
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "NetworkDisabled": True,
        "HostConfig": host,
    }


def _podman_options(tmpfs: dict[str, str]) -> dict[str, Any]:
    """Return the options that differ for Podman.

    It reads the seccomp profile from a file, ignores ``MaskedPaths``, and adds writable folders to a
    read-only container unless they are mounted otherwise. It can't limit the number of files; their inodes
    count as memory of the container.
    """
    mounts = {path: re.sub(r",nr_inodes=\d+", "", options) for path, options in tmpfs.items()}
    return {
        "SecurityOpt": [
            "no-new-privileges",
            f"seccomp={image_folder() / 'seccomp.json'}",
            f"mask={':'.join((*MASKED_PATHS, '/etc/hosts'))}",  # a copy of the machine's file
        ],
        "Tmpfs": {**mounts, "/run": _EMPTY, "/var/tmp": _EMPTY},  # noqa: S108  inside the container
    }


def seccomp_profile(runtime: str | None) -> str:
    """Return the seccomp profile as JSON, the form that Docker accepts.

    The profile fails ``clone3`` with ENOSYS, so that the C library falls back to ``clone``. gVisor would fail
    it with EPERM instead, and then no thread starts. There the call is allowed: gVisor's kernel either does
    not implement it, or must pass the isolation check that it creates no namespace.
    """
    profile = json.loads((image_folder() / "seccomp.json").read_text())
    if runtime == _GVISOR:
        rules = [rule for rule in profile["syscalls"] if rule["names"] != ["clone3"]]
        profile["syscalls"] = [*rules, {"names": ["clone3"], "action": "SCMP_ACT_ALLOW"}]
    return json.dumps(profile)
