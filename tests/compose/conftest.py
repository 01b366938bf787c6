"""The whole stack, brought up from docker-compose.yml by a real Compose."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.compose.stack import Stack

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what Compose reads, with an override that lets images be built here."""
    folder = tmp_path_factory.mktemp("stack")
    subprocess.run([REPO / "scripts/compose-project", folder], check=True)
    return folder


@pytest.fixture(scope="module", params=["v1", "v2"])
def stack(request: pytest.FixtureRequest, project: Path) -> Iterator[Stack]:
    """The default profile, up. Nothing of it is left afterwards, whatever the tests did."""
    client = _client(request.param)
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    with contextlib.closing(docker.DockerClient(base_url=host, version="auto")) as daemon:
        stack = Stack(client, project, f"ihgrpo-test-{os.getpid()}-{request.param}", daemon)
        stack.configure(
            PORT=str(_free_port()),
            DOCKER_SOCKET=host.removeprefix("unix://"),
            IHGRPO_VERSION="test",
            # Built by scripts/ensure-sandbox-image from the same files.
            SANDBOX_IMAGE="ih-grpo-sandbox:latest",
            IHGRPO_RUNNER_WARM_CONTAINERS="1",
        )
        try:
            stack.compose("build", "init", "runner", "api")
            stack.compose("up", "-d")
            yield stack
        finally:
            stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "60")


def _client(version: str) -> list[str]:
    commands = [shlex.split(line) for line in os.environ.get("IHGRPO_COMPOSE", "").splitlines()]
    if not commands:
        pytest.skip("brings up the whole stack: scripts/test-compose")
    for command in commands:
        said = subprocess.run([*command, "version"], capture_output=True, text=True, check=True).stdout
        if ("version 1." in said) == (version == "v1"):
            return command
    pytest.skip(f"no Compose {version} here")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
