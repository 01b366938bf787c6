"""A Compose project, controlled from outside as by an operator."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from openai import OpenAI

from tests.docs.blocks import documented

REPO = Path(__file__).parents[2]


class Stack:
    """A project with a unique name on a shared daemon."""

    def __init__(self, client: list[str], folder: Path, name: str, daemon: docker.DockerClient) -> None:
        self.name = name
        self.folder = folder
        self.daemon = daemon
        self.key = "none"
        self._client = client
        self._settings: dict[str, str] = {}

    def configure(self, **settings: str) -> None:
        """Update the project's .env; other variables are kept."""
        self._settings = {"COMPOSE_PROJECT_NAME": self.name, **self._settings, **settings}
        lines = [f"{key}={value}\n" for key, value in self._settings.items()]
        (self.folder / ".env").write_text("".join(lines))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._settings['PORT']}"

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a Compose command; ``settings`` override .env."""
        return self._run([*self._client, "--project-name", self.name, *arguments], **settings)

    def _run(self, command: list[str], **settings: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("IHGRPO_")}
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**kept, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0", **settings},
            capture_output=True,
            text=True,
            check=False,
        )

    def compose(self, *arguments: str, **settings: str) -> str:
        """Like ``run``, but the command must succeed. Return its stdout."""
        done = self.run(*arguments, **settings)
        assert done.returncode == 0, f"compose {arguments} failed:\n{(done.stdout + done.stderr)[-6000:]}"
        return done.stdout

    def follow(self, file: str, name: str) -> str:
        """Run a command block of the documentation (tests/docs/blocks.py). Return its stderr."""
        client = shlex.join([*self._client, "--project-name", self.name])
        docker = f'docker() {{ shift; command {client} "$@"; }}'  # blocks only use `docker compose`
        code = f"{docker}\n{documented(file, name).code}"
        done = self._run(["bash", "-euo", "pipefail", "-c", code])
        assert done.returncode == 0, f"{code} failed:\n{(done.stdout + done.stderr)[-6000:]}"
        return done.stderr

    def container(self, service: str) -> Any:
        """The current container of a service."""
        labels = [f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}"]
        (found,) = self.daemon.containers.list(all=True, filters={"label": labels})
        return found

    def get(self, path: str) -> httpx.Response:
        """Send a request to the API with the stack's key."""
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {self.key}"}, timeout=10)

    def wait_ready(self, timeout_s: float = 300) -> None:
        """Wait until the API reports that engine and sandbox are ready."""
        deadline, answer = time.monotonic() + timeout_s, "nothing yet"
        while time.monotonic() < deadline:
            try:
                reply = self.get("/ready")
                answer = reply.text
                if reply.status_code == 200:
                    return
            except httpx.HTTPError as error:
                answer = repr(error)
            time.sleep(0.5)
        logs = self.run("logs", "--tail", "30")
        raise AssertionError(f"not ready: {answer}\n{logs.stdout}{logs.stderr}")

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=2, timeout=300)

    def solve(self, model: str = "quickstart") -> None:
        """Request, through the public API, an answer that needs code to run in a sandbox."""
        with self.client() as client:
            reply = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "What is 739184 times 52967 plus 90412 times 33771?"}],
                temperature=0,
            )
        message = reply.choices[0].message
        assert rf"\boxed{{{739184 * 52967 + 90412 * 33771}}}" in (message.content or "")
        assert [tool["status"] for tool in message.executed_tools] == ["ok"]  # type: ignore[attr-defined]

    def kill(self, service: str) -> None:
        """Kill the service's process with SIGKILL, like a crash (``docker kill`` would prevent the
        restart)."""
        program = (
            "import os; from pathlib import Path; "
            "child = next(p for p in Path('/proc').iterdir() if p.name.isdigit() and p.name != '1' "
            "and (p / 'stat').read_text().rpartition(')')[2].split()[1] == '1'); "
            "os.kill(int(child.name), 9)"
        )
        self.container(service).exec_run(["python3", "-c", program])

    def leftovers(self) -> list[str]:
        """List the resources of this project, and the sandboxes of its runner."""
        own = {"label": f"com.docker.compose.project={self.name}"}
        found = [
            *self.daemon.containers.list(all=True, filters=own),
            *self.daemon.containers.list(all=True, filters={"label": f"ih-grpo.instance={self.name}-runner"}),
            *self.daemon.networks.list(filters=own),
            *self.daemon.volumes.list(filters=own),
        ]
        return [str(thing.name) for thing in found]


@contextlib.contextmanager
def new_stack(version: str, folder: Path, *, build: tuple[str, ...] = (), **settings: str) -> Iterator[Stack]:
    """A stack with built images, not started. Everything is removed afterwards, even if tests fail.

    Args:
        version: v1 or v2, of Compose.
        folder: what Compose reads is copied there, with an override that lets images be built here.
        build: services to build beside init, runner and api.
        settings: of its .env.
    """
    client = _client(version)
    subprocess.run([REPO / "tests/compose/copy-project", folder], check=True)
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    with contextlib.closing(docker.DockerClient(base_url=host, version="auto")) as daemon:
        stack = Stack(client, folder, f"ihgrpo-test-{os.getpid()}-{folder.name}", daemon)
        stack.configure(
            PORT=str(_free_port()),
            DOCKER_SOCKET=host.removeprefix("unix://"),
            IHGRPO_VERSION="test",
            # Built by scripts/ensure-sandbox-image from the same files.
            SANDBOX_IMAGE="ih-grpo-sandbox:latest",
            IHGRPO_RUNNER_WARM_CONTAINERS="1",
            **settings,
        )
        try:
            stack.compose("build", "init", "runner", "api", *build)
            yield stack
        finally:
            stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "60")


def image_of(service: str) -> str:
    """Return the image of a service, or its replacement without a registry; skips if there is none."""
    command = [REPO / "tests/compose/service-image", service]
    name = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    if not name:
        pytest.skip(f"no registry is reachable, and no package provides {service}")
    return name


def _client(version: str) -> list[str]:
    commands = [shlex.split(line) for line in os.environ.get("IHGRPO_COMPOSE", "").splitlines()]
    if not commands:
        pytest.skip("brings up the whole stack: make test-compose")
    for command in commands:
        reported = subprocess.run([*command, "version"], capture_output=True, text=True, check=True).stdout
        if ("version 1." in reported) == (version == "v1"):
            return command
    pytest.skip(f"no Compose {version} here")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
