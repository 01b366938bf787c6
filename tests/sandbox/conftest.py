"""Fixtures that run a runner in this process, on a Unix socket, with a fake sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.sandbox.base import Sandbox
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
