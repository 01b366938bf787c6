"""Alternative ways to run code, compared by ``sandbox.py``. None of them keeps a namespace between calls."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import docker
import httpx
import uvicorn
from fastapi import FastAPI, Request

Call = Callable[[str], Awaitable[str]]
"""Runs code and returns its stdout. May be called concurrently."""

_VENV = "/sandbox/.sandbox-venv/bin"
IDLE = ["sh", "-c", f"mkdir -p {_VENV}; ln -s $(command -v python3) {_VENV}/python; exec sleep infinity"]
"""Entry point that keeps a container running for ``docker exec``; llm-sandbox expects a virtual environment
there."""


@contextlib.asynccontextmanager
async def docker_exec(host: str, image: str, workers: int) -> AsyncGenerator[Call]:
    """``docker exec python3 -c CODE`` in a running container: a new interpreter per call."""
    client = docker.DockerClient(base_url=host, max_pool_size=workers)
    container = client.containers.run(image, entrypoint=IDLE, detach=True, network_mode="none")
    try:
        yield lambda code: asyncio.to_thread(
            lambda: container.exec_run(["python3", "-c", code]).output.decode()
        )
    finally:
        container.remove(force=True)
        client.close()


@contextlib.asynccontextmanager
async def llm_sandbox(host: str, image: str, workers: int) -> AsyncGenerator[tuple[Call, Callable[[], None]]]:
    """The package ``llm-sandbox`` with its pool, on our image. Yields a call and a function that leases a
    container.

    Raises:
        ImportError: llm-sandbox is not installed.
    """
    from llm_sandbox import SandboxSession
    from llm_sandbox.pool import PoolConfig, create_pool_manager

    client = docker.DockerClient(base_url=host)
    pool = await asyncio.to_thread(
        create_pool_manager,
        backend="docker",
        config=PoolConfig(max_pool_size=workers + 1, min_pool_size=workers + 1),
        lang="python",
        client=client,
        image=image,
        runtime_configs={"entrypoint": IDLE, "network_mode": "none"},
        skip_environment_setup=True,
    )
    sessions: asyncio.Queue[object] = asyncio.Queue()
    opened = [SandboxSession(lang="python", pool=pool) for _ in range(workers)]
    try:
        for session in opened:
            await asyncio.to_thread(session.open)
            sessions.put_nowait(session)

        async def call(code: str) -> str:
            session = await sessions.get()
            try:
                return (await asyncio.to_thread(session.run, code)).stdout
            finally:
                sessions.put_nowait(session)

        def lease() -> None:
            with SandboxSession(lang="python", pool=pool):
                pass

        yield call, lease
    finally:
        for session in opened:
            await asyncio.to_thread(session.close)
        await asyncio.to_thread(pool.close)
        client.close()


@contextlib.asynccontextmanager
async def plain_http(workers: int) -> AsyncGenerator[Call]:
    """A local HTTP service that starts ``python3`` for each call, without any isolation."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = await asyncio.create_subprocess_exec(sys.executable, __file__, "--port", str(port))
    limits = httpx.Limits(max_connections=workers)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=60, trust_env=False
    ) as client:

        async def call(code: str) -> str:
            return (await client.post("/run", content=code)).text

        try:
            for _ in range(600):
                with contextlib.suppress(httpx.TransportError):
                    await call("")
                    break
                await asyncio.sleep(0.1)
            yield call
        finally:
            server.terminate()
            await server.wait()


def serve(port: int) -> None:
    app = FastAPI()

    @app.post("/run")
    async def run(request: Request) -> str:
        code = (await request.body()).decode()
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await child.communicate()
        return out.decode()

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--port", type=int, required=True)
    serve(parser.parse_args().port)
