"""Address of the Docker daemon."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from service.sandbox.docker import settings as docker_settings
from service.sandbox.docker.settings import default_docker_host


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Paths of the usual socket and of the own daemon's; neither exists yet."""
    usual, own = tmp_path / "usual.sock", tmp_path / "own.sock"
    monkeypatch.setattr(docker_settings, "USUAL_SOCKET", usual)
    monkeypatch.setattr(docker_settings, "OWN_SOCKET", own)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return usual, own


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_uses_the_own_daemon_if_it_is_the_only_one(sockets: tuple[Path, Path]) -> None:
    usual, own = sockets
    assert default_docker_host() == f"unix://{usual}"
    listen(own)
    assert default_docker_host() == f"unix://{own}"
    listen(usual)
    assert default_docker_host() == f"unix://{usual}"


def test_docker_host_takes_precedence(sockets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    listen(sockets[1])
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    assert default_docker_host() == "tcp://elsewhere:2375"
