"""How a sandbox container is made. Nothing here can be changed by a request.

Every limit is one that the start-up probes prove from inside.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from .docker_settings import DockerSandboxSettings

_FIRST_UID, _LAST_UID = 200_000, 2_000_000_000


def image_folder() -> Path:
    """The folder of the sandbox image: inside ``service`` once installed, beside it in a checkout."""
    installed = Path(__file__).parent / "image"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "sandbox_image"


def worker_config(settings: DockerSandboxSettings, uid: int) -> dict[str, Any]:
    """The argument of the worker program."""
    return {
        "uid": uid,
        "home": "/sandbox",
        "writable": ["/tmp", "/sandbox", "/dev/shm"],  # noqa: S108  inside the container
        "output_bytes": settings.output_bytes,
        "output_limit_bytes": settings.output_limit_mb << 20,
        "file_bytes": settings.disk_mb << 20,
        "open_files": settings.open_files,
        "max_lifetime_s": settings.max_lifetime_s,
    }


def container_uid() -> int:
    """An even uid of its own for each container: the kernel counts some limits by uid, across containers."""
    return _FIRST_UID + 2 * secrets.randbelow((_LAST_UID - _FIRST_UID) // 2)


def create_arguments(settings: DockerSandboxSettings, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """The body of Docker's "create a container" request."""
    disk = f"rw,noexec,nosuid,nodev,size={settings.disk_mb}m,nr_inodes={settings.max_files},mode=1777"
    shared = f"rw,noexec,nosuid,nodev,size={settings.shared_memory_mb}m,nr_inodes=256,mode=1777"
    memory = settings.memory_mb << 20
    limits = {
        "core": 0,
        "memlock": 0,
        "msgqueue": 0,
        "nice": 0,
        "rtprio": 0,
        "nofile": settings.open_files,
        "sigpending": 1024,
    }
    host = {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": disk, "/sandbox": disk, "/dev/shm": shared},  # noqa: S108
        "ShmSize": settings.shared_memory_mb << 20,
        "Memory": memory,
        "MemorySwap": memory,  # memory and swap together: no swap
        "PidsLimit": settings.pids,
        "NanoCpus": int(settings.cpus * 1e9),
        "CapDrop": ["ALL"],
        "CapAdd": ["SETUID", "SETGID", "KILL"],  # for the supervisor alone; code loses them with its uid
        "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp_profile()}"],
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
    return {
        "Image": settings.image,
        "Cmd": [json.dumps(worker_config(settings, container_uid()))],
        "User": "0:0",
        "Hostname": "sandbox",
        "Env": ["PYTHONHASHSEED=0", "LANG=C.UTF-8", "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1"],
        "Labels": {**labels, "ih-grpo.name": name},
        "OpenStdin": True,
        "StdinOnce": True,  # the supervisor sees the end of its input when the runner goes
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "NetworkDisabled": True,
        "HostConfig": host,
    }


def seccomp_profile() -> str:
    return json.dumps(json.loads((image_folder() / "seccomp.json").read_text()))
