"""Selection of the daemon by ensure-docker, and its errors. The Docker client and the user are fakes."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from service.sandbox.docker.settings import known_sockets

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(checkout: Any, tmp_path: Path) -> Path:
    """A docker client that reaches the addresses listed in the returned file."""
    running = tmp_path / "running"
    running.touch()
    checkout.program("id", 'case "$1" in -u) echo 1000 ;; *) echo someone ;; esac')
    checkout.program(
        "docker",
        f"""
        if [ "$1" = context ]; then echo unix:///default.sock; exit; fi
        if grep -qxF "$DOCKER_HOST" {running}; then echo 28.0; exit; fi
        if [ -e {running}.denied ]; then echo "permission denied while connecting"; else echo "no daemon"; fi
        exit 1
        """,
    )
    return running


def ensure(checkout: Any, *options: str, **env: str) -> Any:
    return checkout.run("scripts/ensure-docker", *options, **{"IHGRPO_DOCKER_RUN": "/own", **env})


@pytest.mark.parametrize("address", ["unix:///default.sock", "unix:///own/docker.sock"])
def test_uses_a_running_daemon(checkout: Any, client: Path, address: str) -> None:
    client.write_text(f"{address}\n")
    result = ensure(checkout)
    assert (result.returncode, result.stdout) == (0, f"{address}\n")


def test_finds_a_daemon_of_the_user(checkout: Any, client: Path, tmp_path: Path) -> None:
    path = tmp_path / "r" / "docker.sock"
    path.parent.mkdir()
    client.write_text(f"unix://{path}\n")
    env = {"XDG_RUNTIME_DIR": str(path.parent)}
    assert ensure(checkout, **env).returncode == 1  # no socket
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        result = ensure(checkout, **env)
        elsewhere = ensure(checkout, **env, DOCKER_HOST="tcp://there:1")
    assert (result.returncode, result.stdout) == (0, f"unix://{path}\n"), result.stderr
    assert elsewhere.returncode == 1


@pytest.mark.parametrize("env", [{}, {"XDG_RUNTIME_DIR": "/run/user/7"}])
def test_sockets_are_those_of_the_service(env: dict[str, str]) -> None:
    """The script runs before Python is set up, so it has its own list."""
    env = {"HOME": "/home/someone", "PATH": os.environ["PATH"], **env}
    script = f'. "{ROOT}/scripts/lib.sh"; known_sockets'
    listed = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True)
    with patch.dict(os.environ, env, clear=True):
        assert listed.stdout.split() == [str(path) for path in known_sockets()]


def test_docker_host_takes_precedence(checkout: Any, client: Path) -> None:
    client.write_text("unix:///default.sock\ntcp://there:1\n")
    assert ensure(checkout, DOCKER_HOST="tcp://there:1").stdout == "tcp://there:1\n"


def test_does_not_replace_an_unreachable_docker_host(checkout: Any, client: Path) -> None:
    client.write_text("unix:///default.sock\n")
    result = ensure(checkout, DOCKER_HOST="tcp://there:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert "DOCKER_HOST=tcp://there:1" in result.stderr
    assert "unset DOCKER_HOST" in result.stderr


def test_own_ignores_other_daemons(checkout: Any, client: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    checkout.program("id", "echo 0")
    client.write_text(f"unix:///default.sock\nunix://{own}/docker.sock\ntcp://there:1\n")
    result = ensure(checkout, "--own", DOCKER_HOST="tcp://there:1", IHGRPO_DOCKER_RUN=str(own))
    assert (result.returncode, result.stdout) == (0, f"unix://{own}/docker.sock\n"), result.stderr


def test_ordinary_user_gets_instructions_without_a_daemon(checkout: Any, client: Path) -> None:
    result = ensure(checkout)
    assert (result.returncode, result.stdout) == (1, "")
    assert "sudo systemctl start docker" in result.stderr


def test_user_outside_the_docker_group_gets_the_command(checkout: Any, client: Path) -> None:
    client.with_suffix(".denied").touch()
    result = ensure(checkout)
    assert result.returncode == 1
    assert "sudo usermod -aG docker someone" in result.stderr
