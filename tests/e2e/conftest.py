from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import docker
import openai
import pytest

from service.engines.checkpoint import quickstart
from service.sandbox.docker.settings import default_docker_host
from tests.e2e.server import ServerProcess, start
from tests.e2e.vllm_server import vllm_server
from tests.support.caller_adapter import CALLER
from tests.support.vllm_args import VLLM_ARGS, as_options

TIMEOUT_S = 300


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The quickstart checkpoint; ``IHGRPO_TEST_CHECKPOINT`` names another one."""
    return Path(os.environ.get("IHGRPO_TEST_CHECKPOINT", quickstart()))


@pytest.fixture(scope="session")
def server(checkpoint: Path) -> Iterator[ServerProcess]:
    """A server with room for 20 concurrent episodes."""
    running = start(checkpoint, "--warm-containers", "4", "--max-slots", "24")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
    ) as client:
        yield client


@pytest.fixture
async def async_client(server: ServerProcess) -> AsyncGenerator[openai.AsyncOpenAI, None]:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
    ) as client:
        yield client


@pytest.fixture(scope="session")
def containers() -> Iterator[Callable[[ServerProcess], set[str]]]:
    """Ids of the containers that a server has, dead ones included."""
    daemon: Any = docker.APIClient(base_url=default_docker_host(), version="auto")

    def ids(server: ServerProcess) -> set[str]:
        labels = {"label": [f"ih-grpo.pid={server.process.pid}"]}
        return {container["Id"] for container in daemon.containers(all=True, filters=labels)}

    yield ids
    daemon.close()


@pytest.fixture(scope="session")
def vllm_servers(checkpoint: Path) -> Iterator[dict[str, ServerProcess]]:
    """One server per engine, by the engine's name. Those on vLLM also have the adapter ``caller``."""
    adapter = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"caller={CALLER}")
    strict = ("--structured-outputs-config.backend", "guidance")
    with ExitStack() as stack:
        url = stack.enter_context(vllm_server(checkpoint, *adapter, *strict))
        running: dict[str, ServerProcess] = {}
        for name, options in {
            "transformers": (),
            "remote": ("--engine-url", f"{url}/v1"),
            "vllm": ("--lora", f"caller={CALLER}", *as_options(VLLM_ARGS)),
        }.items():
            running[name] = start(checkpoint, "--engine", name, *options)
            stack.callback(running[name].stop)
        yield running
