"""Fixtures: real sandboxes, and runners in this process on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from service.sandbox.base import Sandbox, SandboxError
from service.sandbox.bubblewrap.sandbox import ProcessSandbox, ProcessSandboxSettings
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings
from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
from service.sandbox.runner.protocol import Address
from service.sandbox.runner.server import RunnerServer
from service.sandbox.runner.settings import RunnerSettings
from tests.support.fake_sandbox import TOKEN, FakeSandbox


@dataclass
class Served:
    """A running runner and a client of it."""

    sandbox: Any
    settings: RunnerSettings
    client: RunnerClient
    server: RunnerServer


@contextlib.asynccontextmanager
async def served(
    sandbox: Sandbox,
    bind: str,
    ca_file: Path | None = None,
    client_pair: tuple[Path | None, Path | None] = (None, None),
    **options: Any,
) -> AsyncGenerator[Served]:
    """Serve ``sandbox`` until the block ends; ``options`` are fields of RunnerSettings.

    ``ca_file`` and ``client_pair`` are TLS files of the client.
    """
    settings = RunnerSettings(bind=bind, token=TOKEN, **options)
    listener = Address.parse(bind).listen(settings.socket_mode)
    server = RunnerServer(sandbox, settings)
    client = RunnerClient(
        RunnerClientSettings((bind,), TOKEN, ca_file, *client_pair, connect_timeout_s=400.0)
    )
    with server.capture_signals():
        task = asyncio.create_task(server._serve([listener]))
        try:
            await client.start()
            yield Served(sandbox, settings, client, server)
        finally:
            await client.stop()
            server.should_exit = True
            await task


ServeFake = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve_fake(tmp_path: Path) -> ServeFake:
    """Factory of runners with a FakeSandbox: ``async with serve_fake(**options) as runner``."""

    def serve(**options: Any) -> AbstractAsyncContextManager[Served]:
        return served(FakeSandbox(), f"unix:{tmp_path}/r.sock", **options)

    return serve


@contextlib.asynccontextmanager
async def process(module: str, *arguments: object) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run ``python -m module arguments...`` and kill it at the end of the block if it still runs."""
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", module, *map(str, arguments))
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def docker_sandbox(docker_sandbox_settings: DockerSandboxSettings) -> AsyncGenerator[DockerSandbox]:
    """Containers, in this process."""
    sandbox = DockerSandbox(docker_sandbox_settings)
    await sandbox.start()
    yield sandbox
    await sandbox.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner_client(
    docker_sandbox_settings: DockerSandboxSettings, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Sandbox]:
    """Containers behind a runner."""
    path = tmp_path_factory.mktemp("runner") / "r.sock"
    instance = f"test-runner-{os.getpid()}"
    sandbox = DockerSandbox(docker_sandbox_settings.model_copy(update={"instance": instance}))
    async with served(sandbox, f"unix:{path}") as runner:
        yield runner.client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bubblewrap_sandbox() -> AsyncGenerator[Sandbox]:
    """Namespaces without Docker."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    sandbox = ProcessSandbox(
        ProcessSandboxSettings(
            pool_size=1, max_containers=4, queue_timeout_s=300, start_timeout_s=300, grace_s=20
        )
    )
    try:
        await sandbox.start()
    except SandboxError as error:
        pytest.skip(f"bubblewrap can't create its namespaces here: {error}")
    yield sandbox
    await sandbox.stop()
