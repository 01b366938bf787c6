"""Address of the Docker daemon."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import pytest

from service.sandbox.docker import settings as docker_settings
from service.sandbox.docker.settings import DockerAddress, default_docker_host, find_docker, known_sockets


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without Docker's files; no daemon is running."""
    monkeypatch.setattr(docker_settings, "USUAL_SOCKET", tmp_path / "usual.sock")
    monkeypatch.setattr(docker_settings, "OWN_SOCKET", tmp_path / "own.sock")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(docker_settings, "PODMAN_SOCKET", tmp_path / "podman.sock")
    return tmp_path


def listen(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def add_context(home: Path, name: str, host: str) -> None:
    meta = home / ".docker/contexts/meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}))


def test_without_a_daemon_it_is_the_usual_socket(home: Path) -> None:
    assert find_docker() == DockerAddress(f"unix://{home}/usual.sock")


def test_takes_the_first_socket_that_exists(home: Path) -> None:
    paths = known_sockets()
    assert paths[:2] == [home / "usual.sock", home / "own.sock"]
    assert home / ".docker/run/docker.sock" in paths  # Docker Desktop
    assert home / "run/docker.sock" in paths  # rootless Docker
    for path in reversed(paths):
        listen(path)
        assert find_docker() == DockerAddress(f"unix://{path}")


def test_ignores_files_and_folders_of_other_users(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "usual.sock").touch()
    listen(home / "own.sock")
    assert default_docker_host() == f"unix://{home}/own.sock"

    def denied(self: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", denied)
    assert default_docker_host() == f"unix://{home}/usual.sock"


def test_current_context_takes_precedence_over_sockets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listen(home / "usual.sock")
    add_context(home, "desktop-linux", "unix:///desktop.sock")
    add_context(home, "lab", "tcp://lab:2375")
    assert default_docker_host() == f"unix://{home}/usual.sock"
    (home / ".docker/config.json").write_text(json.dumps({"currentContext": "desktop-linux"}))
    assert find_docker() == DockerAddress("unix:///desktop.sock", "Docker context desktop-linux")
    monkeypatch.setenv("DOCKER_CONTEXT", "lab")
    assert find_docker() == DockerAddress("tcp://lab:2375", "Docker context lab")
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert default_docker_host() == f"unix://{home}/usual.sock"


def test_unreadable_context_is_ignored(home: Path) -> None:
    listen(home / "own.sock")
    add_context(home, "desktop-linux", "unix:///desktop.sock")
    (home / ".docker/config.json").write_text(json.dumps({"currentContext": "desktop-linux"}))
    next(home.glob(".docker/contexts/meta/*/meta.json")).write_text("{")
    assert default_docker_host() == f"unix://{home}/own.sock"


def test_docker_host_takes_precedence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_context(home, "lab", "tcp://lab:2375")
    monkeypatch.setenv("DOCKER_CONTEXT", "lab")
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    assert find_docker() == DockerAddress("tcp://elsewhere:2375", "DOCKER_HOST")
