"""Upgrade and rollback of the Compose stack while clients send requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from openai import OpenAI, OpenAIError

from tests.compose.stack import Stack, new_stack

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.compose, pytest.mark.timeout(1500)]

QUESTION, ANSWER = "What is 739184 times 52967?", rf"\boxed{{{739184 * 52967}}}"
OLD, NEW = "test", "test-next"


@dataclass
class Load:
    """Clients that ask questions one after the other. Their SDK retries while the server restarts."""

    clients: int = 3
    answers: int = 0
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def on(self, stack: Stack) -> Iterator[None]:
        """Send requests until the end of the block."""
        ended = threading.Event()
        with ThreadPoolExecutor(self.clients) as pool:
            for _ in range(self.clients):
                pool.submit(self._ask, stack, ended)
            try:
                yield
            finally:
                ended.set()

    def wait_for(self, more: int, *, timeout_s: float = 300) -> None:
        """Wait for further answers."""
        wanted, deadline = self.answers + more, time.monotonic() + timeout_s
        while self.answers < wanted:
            assert time.monotonic() < deadline, self
            time.sleep(0.2)

    def _ask(self, stack: Stack, ended: threading.Event) -> None:
        with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=60, timeout=120) as client:
            while not ended.is_set():
                try:
                    reply = client.chat.completions.create(
                        model="quickstart", messages=[{"role": "user", "content": QUESTION}], temperature=0
                    )
                except OpenAIError as error:
                    self.problems.append(repr(error))
                    continue
                content = reply.choices[0].message.content or ""
                if ANSWER in content:
                    self.answers += 1
                else:
                    self.problems.append(content)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_upgrade_and_rollback_lose_no_request(version: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with new_stack(version, tmp_path_factory.mktemp(f"upgrade-{version}-")) as stack:
        for name in ("ih-grpo-api", "ih-grpo-runner"):
            stack.daemon.images.get(f"{name}:{OLD}").tag(name, NEW)
        stack.compose("up", "--detach")
        stack.wait_ready()
        with stack.client() as client:
            stored = client.responses.create(model="quickstart", input=QUESTION, temperature=0)
        load = Load()
        with load.on(stack):
            load.wait_for(3)
            for target in (NEW, OLD):
                stack.configure(IHGRPO_VERSION=target)
                stack.compose("up", "--detach")
                stack.wait_ready()
                for service in ("api", "runner"):
                    assert stack.container(service).attrs["Config"]["Image"] == f"ih-grpo-{service}:{target}"
                load.wait_for(3)
        assert load.problems == []
        with stack.client() as client:
            assert client.responses.retrieve(stored.id).output_text == stored.output_text
            continued = client.responses.create(
                model="quickstart", input="And times 2?", previous_response_id=stored.id, temperature=0
            )
        assert continued.status == "completed"
