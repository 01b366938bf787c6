"""Checks of the Docker daemon. The answers of Docker Desktop, rootless Docker and Podman are made up."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException

from service.doctor import CheckResult, docker_daemon
from service.doctor.docker_daemon import DockerPlatform, platform_checks
from service.sandbox.docker.settings import DockerAddress
from service.server.settings import Settings

ENGINE_VERSION = {
    "Version": "28.0.4",
    "Platform": {"Name": "Docker Engine - Community"},
    "Components": [{"Name": "Engine"}, {"Name": "containerd"}, {"Name": "runc"}],
}
ENGINE_INFO = {
    "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
    "KernelVersion": os.uname().release,
    "Architecture": "x86_64",
    "CgroupVersion": "2",
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
    "MemTotal": 64 << 30,
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
}
DESKTOP_VERSION = {"Version": "28.0.4", "Platform": {"Name": "Docker Desktop 4.40.0 (187762)"}}
DESKTOP_INFO = {
    **ENGINE_INFO,
    "OperatingSystem": "Docker Desktop",
    "KernelVersion": "6.10.14-linuxkit",
    "Architecture": "aarch64",
    "MemTotal": 8 << 30,
}


def read(version: dict[str, Any] = ENGINE_VERSION, **info: Any) -> DockerPlatform:
    return DockerPlatform.read(version, {**ENGINE_INFO, **info})


def checks(platform: DockerPlatform, containers: int = 32) -> dict[str, CheckResult]:
    return {result.check: result for result in platform_checks(platform, containers)}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, which is also the current folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(docker_daemon, "system", lambda: "Linux")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_docker_engine_has_no_differences() -> None:
    assert str(read()) == "Docker Engine 28.0.4 (x86_64, cgroup v2)"
    assert checks(read()) == {}


def test_desktop_is_compared_with_the_memory_of_its_machine() -> None:
    desktop = DockerPlatform.read(DESKTOP_VERSION, DESKTOP_INFO)
    assert str(desktop) == "Docker Desktop 28.0.4 (aarch64, cgroup v2)"
    small = checks(desktop, 32)[docker_daemon.MEMORY_CHECK]
    assert (small.verdict, small.found) == (
        "warn",
        "8.0 GiB in the machine of Docker Desktop; 32 containers need up to 16.0 GiB",
    )
    assert "to 16 or less, or raise Memory limit under Settings > Resources" in small.hint
    assert checks(desktop, 16)[docker_daemon.MEMORY_CHECK].verdict == "ok"
    assert "SIGSTOP" in checks(desktop)["freezer"].found


def test_desktop_on_wsl_names_its_own_setting_and_shares_all_files(home: Path) -> None:
    info = {**DESKTOP_INFO, "KernelVersion": "5.15.167.4-microsoft-standard-WSL2"}
    found = checks(DockerPlatform.read(DESKTOP_VERSION, info))
    assert ".wslconfig" in found[docker_daemon.MEMORY_CHECK].hint
    assert "file sharing" not in found


def test_desktop_must_share_the_folder_of_the_compose_stack(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desktop = DockerPlatform.read(DESKTOP_VERSION, DESKTOP_INFO)
    assert "mount no files" in checks(desktop)["file sharing"].found
    (home / "docker-compose.yml").touch()
    assert checks(desktop)["file sharing"].verdict == "ok"  # the home folder is shared on Linux
    stored = home / ".docker/desktop/settings-store.json"
    stored.parent.mkdir(parents=True)
    stored.write_text(json.dumps({"FilesharingDirectories": ["/srv/shared"]}))
    found = checks(desktop)["file sharing"]
    assert found.verdict == "warn"
    assert "/srv/shared" in found.found
    stored.write_text(json.dumps({"MemoryMiB": 8192}))
    assert checks(desktop)["file sharing"].verdict == "ok"
    monkeypatch.setattr(docker_daemon, "system", lambda: "Darwin")
    assert docker_daemon.shared_folders()[0] == Path("/Users")


def test_rootless_docker_needs_delegated_controllers() -> None:
    options = [*ENGINE_INFO["SecurityOptions"], "name=rootless"]  # type: ignore[misc]
    rootless = read(SecurityOptions=options, PidsLimit=False, CpuCfsQuota=False)
    assert "rootless" in str(rootless)
    found = checks(rootless)["docker limits"]
    assert (found.verdict, found.found) == ("fail", "Docker Engine can't limit processes, CPU time")
    assert "Delegate=" in found.hint
    old = read(SecurityOptions=options, CgroupVersion="1", MemoryLimit=False)
    assert "cgroup v2" in checks(old)["docker limits"].hint
    assert set(checks(read(SecurityOptions=options))) == {"freezer"}


def test_kernel_without_memory_controller_is_a_failure() -> None:
    found = checks(read(MemoryLimit=False))["docker limits"]
    assert (found.verdict, found.found) == ("fail", "Docker Engine can't limit memory")
    assert "cgroup_enable=memory" in found.hint
    assert checks(read(SwapLimit=False))["docker limits"].verdict == "warn"


def test_kernel_without_seccomp_is_a_failure() -> None:
    assert checks(read(SecurityOptions=["name=cgroupns"]))["docker limits"].verdict == "fail"


def test_recognizes_podman() -> None:
    podman = read({"Version": "4.3.1", "Components": [{"Name": "Podman Engine"}, {"Name": "Conmon"}]})
    assert str(podman).startswith("Podman 4.3.1")


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        (DockerAddress("unix:///absent/docker.sock"), "systemctl start docker"),
        (DockerAddress("unix:///absent/docker.sock", "Docker context desktop-linux"), "start Docker Desktop"),
        (DockerAddress("unix:///absent/docker.sock", "Docker context lab"), "docker context use"),
        (DockerAddress("unix:///absent/podman/podman.sock"), "podman.socket"),
        (DockerAddress("ssh://me@lab", "Docker context lab"), "ssh -nNT -L"),
        (DockerAddress("npipe:////./pipe/docker_engine"), "WSL 2"),
    ],
)
def test_unreachable_daemon_has_a_hint(
    monkeypatch: pytest.MonkeyPatch, address: DockerAddress, hint: str
) -> None:
    monkeypatch.setattr(docker_daemon, "find_docker", lambda: address)
    (found,) = docker_daemon.docker(Settings())
    assert found.verdict == "fail"
    assert hint in found.hint
    assert address.source in found.found


def test_socket_of_another_user_names_the_group(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))

    def denied(*_: object, **__: object) -> None:
        raise DockerException("permission denied")

    monkeypatch.setattr(docker, "DockerClient", denied)
    monkeypatch.setattr(docker_daemon, "find_docker", lambda: DockerAddress(f"unix://{path}"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    (found,) = docker_daemon.docker(Settings())
    assert "usermod -aG docker" in found.hint


@pytest.mark.docker
def test_missing_image_names_the_build_command() -> None:
    *daemon, image = docker_daemon.docker(Settings(sandbox_image="ih-grpo-no-such-image:none"))
    assert daemon[0].check == "docker"
    assert {result.verdict for result in daemon} == {"ok"}
    assert image.verdict == "fail"
    assert image.hint == "ih-grpo sandbox build --image ih-grpo-no-such-image:none"
