"""Cost of files and of containers that live across requests.

    DOCKER_HOST=unix:///... python benchmarks/files.py

Measures upload and download through the Files API, the copy of an input into a container, a call with and
without that input, the return to a parked container, and the memory of parked containers. Prints the tables
of docs/reference/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import random
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable

import docker
import httpx
import uvicorn
from fastapi import FastAPI

from service.api.errors import install
from service.api.files.route import router
from service.sandbox.base import SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DEFAULT_IMAGE, DockerSandboxSettings, default_docker_host
from service.sandbox.factory import instance_name
from service.sandbox.files import FileSession
from service.store.blobs import open_blobs
from service.store.database import open_database, prepare
from service.store.files import FileStore

MB = 1 << 20
LIMITS = SessionLimits(run_limit_s=60.0, figures="png")
CODE = "print(1)"


async def timed(work: Awaitable[object]) -> float:
    """Milliseconds until ``work`` is done."""
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1000


async def zeros(size: int) -> AsyncIterator[bytes]:
    chunk = bytes(MB)
    for start in range(0, size, MB):
        yield chunk[: min(MB, size - start)]


@contextlib.asynccontextmanager
async def files_api(folder: str) -> AsyncGenerator[str]:
    """The routes of the Files API on a loopback port, with SQLite and a directory."""
    engine = open_database(f"sqlite:///{folder}/store.db")
    await prepare(engine)
    app = FastAPI()
    install(app)
    app.include_router(router)
    app.state.files = FileStore(
        engine, open_blobs(f"{folder}/files"), max_file_bytes=1 << 40, max_owner_bytes=1 << 40
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
                await asyncio.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
            await engine.dispose()


async def transfers(megabytes: int, repeats: int) -> tuple[float, float]:
    """Median MB per second of an upload and of a download."""
    head = b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    head += b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    up, down = [], []
    with tempfile.TemporaryDirectory() as folder:
        async with files_api(folder) as url, httpx.AsyncClient(timeout=None) as client:
            for _ in range(repeats):

                async def body() -> AsyncIterator[bytes]:
                    yield head
                    async for chunk in zeros(megabytes * MB):
                        yield chunk
                    yield b"\r\n--B--\r\n"

                began = time.perf_counter()
                headers = {"Content-Type": "multipart/form-data; boundary=B"}
                answer = await client.post(f"{url}/v1/files", content=body(), headers=headers)
                answer.raise_for_status()
                up.append(megabytes / (time.perf_counter() - began))
                began, received = time.perf_counter(), 0
                path = f"{url}/v1/files/{answer.json()['id']}"
                async with client.stream("GET", f"{path}/content") as content:
                    async for chunk in content.aiter_bytes():
                        received += len(chunk)
                assert received == megabytes * MB
                down.append(megabytes / (time.perf_counter() - began))
                await client.delete(path)
    return statistics.median(up), statistics.median(down)


async def call(session: FileSession) -> None:
    await session.invoke(CODE)
    result = await session.flush()
    assert result.status == "ok", result


async def dispatch(sessions: dict[str, FileSession], calls: int) -> dict[str, list[float]]:
    """Milliseconds of each call; the sessions take turns, in random order."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    order = list(sessions.items())
    for _ in range(calls):
        random.shuffle(order)
        for name, session in order:
            times[name].append(await timed(call(session)))
    return times


async def parked(session: FileSession, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds to freeze a container, and of the first call after that."""
    freeze, resume = [], []
    for _ in range(repeats):
        await session.park()
        freeze.append(await timed(session.freeze()))
        resume.append(await timed(call(session)))
    return freeze, resume


def memory_mb(host: str, name: str) -> float:
    """Memory of a container in MB, without the cache of files on disk."""
    with contextlib.closing(docker.APIClient(base_url=host, version="auto")) as client:
        stats = client.stats(name, stream=False)["memory_stats"]
    cache = stats["stats"].get("total_inactive_file", stats["stats"].get("inactive_file", 0))
    return float(stats["usage"] - cache) / MB


def row(name: str, *values: float) -> None:
    print(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |", flush=True)


def spread(times: list[float]) -> tuple[float, float]:
    return statistics.median(times), statistics.quantiles(times, n=20)[-1]


async def main(options: argparse.Namespace) -> None:
    host, image = default_docker_host(), options.image
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, image {image}"
    )
    up, down = await transfers(options.megabytes, 3)
    print("\n| transfer | MB/s |\n|---|--:|")
    row(f"upload of {options.megabytes} MB", up)
    row(f"download of {options.megabytes} MB", down)
    sandbox = DockerSandbox(
        DockerSandboxSettings(
            image=image,
            pool_size=2,
            max_containers=8,
            instance=instance_name("benchmark"),
            queue_timeout_s=300,
            start_timeout_s=300,
            run_limit_ceiling_s=60,
            grace_s=30,
        )
    )
    await sandbox.start()
    try:
        plain, loaded = sandbox.file_session(LIMITS), sandbox.file_session(LIMITS)
        for session in (plain, loaded):
            await session.lease()
        size = options.megabytes * MB
        took = await timed(loaded.put("input.bin", size, zeros(size)))
        row(f"copy of {options.megabytes} MB into a container", options.megabytes / took * 1000)
        sessions = {"no input": plain, f"an input of {options.megabytes} MB": loaded}
        times = await dispatch(sessions, options.calls)
        print("\n| call of `print(1)` with | p50 ms | p95 ms |\n|---|--:|--:|")
        for name, values in times.items():
            row(name, *spread(values))
        listing = [await timed(plain.changes()) for _ in range(options.calls)]
        print("\n| parked container | p50 ms | p95 ms |\n|---|--:|--:|")
        freeze, resume = await parked(plain, options.repeats)
        row("freeze", *spread(freeze))
        row("first call after that", *spread(resume))
        row("list changed files, none changed", *spread(listing))
        await plain.invoke(CODE)
        name = (await plain.flush()).container
        assert name is not None
        await plain.park()
        used = await asyncio.to_thread(memory_mb, host, name)
        print(f"\nA parked container uses {used:.0f} MB; {4096 / used:.0f} of them fit into 4 GB.")
    finally:
        await sandbox.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default=DEFAULT_IMAGE)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=30)
    asyncio.run(main(parser.parse_args()))
