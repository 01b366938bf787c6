"""Checks of the Docker daemon: its address, its limits, and the differences of Docker Desktop, rootless
Docker and Podman."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from platform import system
from typing import Any, Final, Self

from service.doctor import CheckResult
from service.doctor.machine import GIB, too_many_containers
from service.sandbox.base import SandboxError
from service.sandbox.docker.container_config import DaemonKind
from service.sandbox.docker.image import inspect_image
from service.sandbox.docker.settings import DockerAddress, build_command, find_docker
from service.sandbox.settings import PoolSettings
from service.server.settings import Settings

MEMORY_CHECK: Final = "docker memory"
"""Name of the check that is made if the daemon has its own memory, for example that of a virtual machine."""
_DESKTOP: Final = "Docker Desktop"
_CONTROLLERS: Final = {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "CPU time"}
_SHARED_ON_MACOS: Final = ("/Users", "/Volumes", "/private", "/tmp", "/var/folders")  # noqa: S108
_DESKTOP_SETTINGS: Final = (
    "Library/Group Containers/group.com.docker/settings-store.json",
    ".docker/desktop/settings-store.json",
)
"""Settings of Docker Desktop in the home folder, on macOS and on Linux."""


@dataclass(frozen=True, slots=True)
class DockerPlatform:
    """The kind of a daemon, from its answers to ``/version`` and ``/info``."""

    product: str
    """``Docker Engine``, ``Docker Desktop`` or ``Podman``."""
    version: str
    architecture: str
    cgroup_version: str
    is_rootless: bool
    is_elsewhere: bool
    """It runs in a virtual machine or on another machine, with its own memory and files."""
    is_wsl: bool
    """Its kernel is that of WSL 2 on Windows."""
    memory: int
    """Memory of its machine in bytes; 0 if unknown."""
    unlimited: tuple[str, ...]
    """Resources that it can't limit."""
    limits_swap: bool
    has_seccomp: bool

    @classmethod
    def read(cls, version: Mapping[str, Any], info: Mapping[str, Any]) -> Self:
        """Return the kind of a daemon from the two answers."""
        options = info.get("SecurityOptions") or ()
        names = (str((version.get("Platform") or {}).get("Name", "")), str(info.get("OperatingSystem", "")))
        is_desktop = any(name.startswith(_DESKTOP) for name in names)
        if DaemonKind.read(version, info).is_podman:
            product = "Podman"
        else:
            product = _DESKTOP if is_desktop else "Docker Engine"
        return cls(
            product=product,
            version=str(version.get("Version", "")),
            architecture=str(info.get("Architecture", "")),
            cgroup_version=str(info.get("CgroupVersion", "")),
            is_rootless=any(option.startswith("name=rootless") for option in options),
            is_elsewhere=is_desktop or info.get("KernelVersion") != os.uname().release,
            is_wsl="microsoft" in str(info.get("KernelVersion", "")).lower(),
            memory=int(info.get("MemTotal") or 0),
            unlimited=tuple(name for field, name in _CONTROLLERS.items() if not info.get(field, True)),
            limits_swap=bool(info.get("SwapLimit", True)),
            has_seccomp=any(option.startswith("name=seccomp") for option in options),
        )

    def __str__(self) -> str:
        rootless = ", rootless" if self.is_rootless else ""
        return f"{self.product} {self.version}{rootless} ({self.architecture}, cgroup v{self.cgroup_version})"


def docker(settings: Settings) -> list[CheckResult]:
    """Check that the Docker daemon answers, can limit containers, and has the sandbox image."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    address, image = find_docker(), settings.sandbox_image
    if hint := _unsupported(address):
        return [CheckResult("docker", "fail", f"{_place(address)} can't be used", hint)]
    socket = Path(address.host.removeprefix("unix://"))
    if address.host.startswith("unix://") and not _exists(socket):
        return [CheckResult("docker", "fail", f"no socket at {_place(address)}", _no_docker(address))]
    try:
        client = docker.DockerClient(base_url=address.host, version="auto", timeout=10)
    except DockerException as error:
        found = f"no response from {_place(address)}: {_first_line(error)}"
        return [CheckResult("docker", "fail", found, _no_docker(address))]
    try:
        platform = DockerPlatform.read(client.version(), client.info())
        results = [CheckResult("docker", "ok", f"{platform} at {_place(address)}")]
        results += platform_checks(platform, settings.max_containers)
        client.images.get(image)
    except ImageNotFound:
        missing = f"Docker has no image {image}"
        return [*results, CheckResult("sandbox image", "fail", missing, build_command(image))]
    except DockerException as error:
        found = f"{_place(address)}: {_first_line(error)}"
        return [CheckResult("docker", "fail", found, _no_docker(address))]
    finally:
        client.close()
    return [*results, _image(image)]


def platform_checks(platform: DockerPlatform, containers: int) -> Iterator[CheckResult]:
    """Check whether a daemon can enforce the limits, and yield its differences to Docker Engine as root."""
    if platform.unlimited:
        found = f"{platform.product} can't limit {', '.join(platform.unlimited)}"
        yield CheckResult("docker limits", "fail", found, _enable_limits(platform))
    elif not platform.limits_swap:
        hint = "add swapaccount=1 to the kernel's command line, or turn swap off: swapoff -a"
        yield CheckResult("docker limits", "warn", "the kernel can't limit the swap of containers", hint)
    if not platform.has_seccomp:
        hint = "use a kernel with CONFIG_SECCOMP_FILTER"
        yield CheckResult("docker limits", "fail", "the kernel has no filter of system calls (seccomp)", hint)
    if platform.is_elsewhere and platform.memory:
        yield _memory(platform, containers)
    if platform.is_elsewhere or platform.is_rootless:
        found = "the cgroups of containers are not accessible: between two runs code is stopped with SIGSTOP"
        yield CheckResult("freezer", "ok", found)
    if platform.product == _DESKTOP and not platform.is_wsl:  # Windows shares the files of WSL 2 by itself
        yield _file_sharing(Path.cwd())


def _enable_limits(platform: DockerPlatform) -> str:
    if not platform.is_rootless:
        return "enable the controllers of the kernel, e.g. cgroup_enable=memory on its command line"
    if platform.cgroup_version == "1":
        return "a rootless daemon needs cgroup v2: boot with systemd.unified_cgroup_hierarchy=1"
    return (
        "delegate the controllers to your user: put Delegate=cpu cpuset io memory pids under [Service] into "
        "/etc/systemd/system/user@.service.d/delegate.conf, then systemctl daemon-reload and log in again"
    )


def _memory(platform: DockerPlatform, containers: int) -> CheckResult:
    """Check the memory of the daemon's machine, of which containers use up to their limit."""
    needed = containers * PoolSettings().memory_mb << 20
    found = f"{platform.memory / GIB:.1f} GiB in the machine of {platform.product}"
    if platform.memory >= needed:
        return CheckResult(MEMORY_CHECK, "ok", found)
    needs, hint = too_many_containers(containers, platform.memory)
    if platform.product == _DESKTOP:
        setting = "memory in .wslconfig" if platform.is_wsl else "Memory limit under Settings > Resources"
        hint += f", or raise {setting}"
    return CheckResult(MEMORY_CHECK, "warn", f"{found}; {needs}", hint)


def _file_sharing(folder: Path) -> CheckResult:
    """Check that Docker Desktop shares the folder of the Compose stack, whose services mount files of it."""
    name = "file sharing"
    if not (folder / "docker-compose.yml").is_file():
        return CheckResult(name, "ok", "sandbox containers mount no files of this machine")
    shared = shared_folders()
    if any(folder.is_relative_to(path) for path in shared):
        return CheckResult(name, "ok", f"{folder} can be mounted by the Compose stack")
    found = f"{folder} is in none of the folders that Docker Desktop shares: {', '.join(map(str, shared))}"
    hint = "to use the Compose stack, add it under Settings > Resources > File sharing, or move the checkout"
    return CheckResult(name, "warn", found, hint)


def shared_folders() -> list[Path]:
    """Return the folders that Docker Desktop shares: those of its settings, or its defaults."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  never fails, unlike Path.home
    for name in _DESKTOP_SETTINGS:
        try:
            stored = json.loads((home / name).read_text(encoding="utf-8"))
            return [Path(path) for path in stored["FilesharingDirectories"]]
        except (OSError, ValueError, KeyError, TypeError):  # only changed settings are stored
            continue
    return [Path(path) for path in _SHARED_ON_MACOS] if system() == "Darwin" else [home]


def _image(image: str) -> CheckResult:
    """List what is inside the image."""
    try:
        about = inspect_image(image)
    except SandboxError as error:
        return CheckResult("sandbox image", "fail", str(error), build_command(image))
    found = f"{image}, {about.size / 1e6:,.0f} MB"
    if about.packages is None:
        hint = f"to record its packages, build it again: {build_command(image)} --force"
        return CheckResult("sandbox image", "ok", f"{found}, packages unknown", hint)
    listed = ", ".join(f"{name} {version}" for name, version in sorted(about.direct.items()))
    return CheckResult("sandbox image", "ok", f"{found}: {listed}")


def _place(address: DockerAddress) -> str:
    return f"{address.host} ({address.source})" if address.source else address.host


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _exists(socket: Path) -> bool:
    try:
        return socket.is_socket()
    except PermissionError:  # the folder belongs to another user, which the connection reports
        return True


def _unsupported(address: DockerAddress) -> str:
    """Return a hint for an address of another kind than ``unix://`` and ``tcp://``; empty for these."""
    scheme, _, rest = address.host.partition("://")
    if scheme in ("unix", "tcp"):
        return ""
    if scheme == "ssh":
        return (
            f"start ih-grpo runner on that machine, or forward its socket: ssh -nNT -L "
            f"$PWD/docker.sock:/var/run/docker.sock {rest}, and set DOCKER_HOST=unix://$PWD/docker.sock"
        )
    return "set DOCKER_HOST to unix:///path or tcp://host:port; on Windows use WSL 2"


def _no_docker(address: DockerAddress) -> str:
    socket = Path(address.host.removeprefix("unix://"))
    if address.host.startswith("unix://") and _exists(socket) and not os.access(socket, os.W_OK):
        if "podman" in socket.parts:
            return "start Podman's socket of your user: systemctl --user start podman.socket"
        return f"sudo usermod -aG docker {os.environ.get('USER', '$USER')}, then log in again"
    if "desktop" in address.source or ".docker" in socket.parts:
        return "start Docker Desktop, or select another daemon: docker context use NAME, or DOCKER_HOST"
    if "podman" in socket.parts:
        return "start Podman's socket: systemctl --user start podman.socket, or as root without --user"
    if address.source.startswith("Docker context"):
        return "start the daemon of this context, or select another one: docker context use NAME"
    return "start Docker (systemctl start docker) or Docker Desktop, or set DOCKER_HOST to where it listens"
