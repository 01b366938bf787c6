"""One Compose project, driven from outside as an operator does."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import docker
import httpx


class Stack:
    """A project of its own name on a daemon that others may use."""

    def __init__(self, client: list[str], folder: Path, name: str, daemon: docker.DockerClient) -> None:
        self.name = name
        self.daemon = daemon
        self._client = client
        self._folder = folder
        self._settings: dict[str, str] = {}

    def configure(self, **settings: str) -> None:
        """Write the project's .env."""
        self._settings = {"COMPOSE_PROJECT_NAME": self.name, **settings}
        lines = [f"{key}={value}\n" for key, value in self._settings.items()]
        (self._folder / ".env").write_text("".join(lines))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._settings['PORT']}"

    def compose(self, *arguments: str, check: bool = True, **settings: str) -> str:
        """Run one command of Compose; ``settings`` go before those of .env. Returns all that it says."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("IHGRPO_")}
        environment = {**kept, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0", **settings}
        done = subprocess.run(
            [*self._client, "--project-name", self.name, *arguments],
            cwd=self._folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"compose {arguments} failed:\n{done.stdout[-6000:]}"
        return done.stdout

    def container(self, service: str) -> Any:
        """The container of a service, as it is now."""
        labels = [f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}"]
        (found,) = self.daemon.containers.list(all=True, filters={"label": labels})
        return found

    def wait_ready(self, timeout_s: float = 300) -> None:
        """Until the API says that engine and sandbox serve."""
        deadline, answer = time.monotonic() + timeout_s, "nothing yet"
        while time.monotonic() < deadline:
            try:
                reply = httpx.get(f"{self.url}/ready", timeout=10)
                answer = reply.text
                if reply.status_code == 200:
                    return
            except httpx.HTTPError as error:
                answer = repr(error)
            time.sleep(0.5)
        raise AssertionError(f"not ready: {answer}\n{self.compose('logs', '--tail', '30', check=False)}")

    def kill(self, service: str) -> None:
        """SIGKILL its program, as a crash or the kernel would (``docker kill`` means: keep it down)."""
        program = (
            "import os; from pathlib import Path; "
            "child = next(p for p in Path('/proc').iterdir() if p.name.isdigit() and p.name != '1' "
            "and (p / 'stat').read_text().rpartition(')')[2].split()[1] == '1'); "
            "os.kill(int(child.name), 9)"
        )
        self.container(service).exec_run(["python3", "-c", program])

    def leftovers(self) -> list[str]:
        """What bears this project's name, and the sandboxes of its runner."""
        own = {"label": f"com.docker.compose.project={self.name}"}
        found = [
            *self.daemon.containers.list(all=True, filters=own),
            *self.daemon.containers.list(all=True, filters={"label": f"ih-grpo.instance={self.name}-runner"}),
            *self.daemon.networks.list(filters=own),
            *self.daemon.volumes.list(filters=own),
        ]
        return [str(thing.name) for thing in found]
