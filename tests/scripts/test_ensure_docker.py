"""Which daemon is taken, and what is said where there is none. The client and the user are stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def client(checkout: Any, tmp_path: Path) -> Path:
    """A docker client for which the addresses listed in the returned file answer."""
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


def ensure(checkout: Any, **env: str) -> Any:
    return checkout.run("scripts/ensure-docker", IHGRPO_DOCKER_RUN="/own", **env)


@pytest.mark.parametrize("address", ["unix:///default.sock", "unix:///own/docker.sock"])
def test_a_running_daemon_is_taken(checkout: Any, client: Path, address: str) -> None:
    client.write_text(f"{address}\n")
    result = ensure(checkout)
    assert (result.returncode, result.stdout) == (0, f"{address}\n")


def test_docker_host_goes_first(checkout: Any, client: Path) -> None:
    client.write_text("unix:///default.sock\ntcp://there:1\n")
    assert ensure(checkout, DOCKER_HOST="tcp://there:1").stdout == "tcp://there:1\n"


def test_a_silent_docker_host_is_not_replaced_by_another(checkout: Any, client: Path) -> None:
    client.write_text("unix:///default.sock\n")
    result = ensure(checkout, DOCKER_HOST="tcp://there:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert "DOCKER_HOST=tcp://there:1" in result.stderr
    assert "unset DOCKER_HOST" in result.stderr


def test_without_a_daemon_an_ordinary_user_is_told_what_to_do(checkout: Any, client: Path) -> None:
    result = ensure(checkout)
    assert (result.returncode, result.stdout) == (1, "")
    assert "sudo systemctl start docker" in result.stderr


def test_a_user_outside_the_group_is_told_so(checkout: Any, client: Path) -> None:
    client.with_suffix(".denied").touch()
    result = ensure(checkout)
    assert result.returncode == 1
    assert "sudo usermod -aG docker someone" in result.stderr
