"""Cost of files, of containers that live across requests, and of the packages in a sandbox image.

    DOCKER_HOST=unix:///... python benchmarks/containers.py
    python benchmarks/containers.py --image ih-grpo-sandbox:old --image ih-grpo-sandbox:new

Measures upload and download through a server, the copy of an input into a container, calls with and without
that input and after imports, the return to a parked container, the import of each package in a new session,
and the memory of idle containers. Calls alternate between all variants, also between several images, so that
a busy machine slows all of them. Prints the tables of docs/reference/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import random
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from pathlib import Path

import docker
import httpx

from service.sandbox.base import SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DEFAULT_IMAGE, DockerSandboxSettings, default_docker_host
from service.sandbox.factory import instance_name
from service.sandbox.files import FileSession

MB = 1 << 20
LIMITS = SessionLimits(run_limit_s=60.0, figures="png")
CODE = "print(1)"
PACKAGES = ("pandas", "openpyxl", "pyarrow.parquet", "sklearn.linear_model", "matplotlib.pyplot", "networkx")


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
async def server(image: str) -> AsyncGenerator[str]:
    """``ih-grpo serve`` on a loopback port, with SQLite and a directory for files."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        settings = {
            "IHGRPO_STORE_URL": f"sqlite:///{folder}/store.db",
            "IHGRPO_FILES_URL": f"{folder}/files",
            "IHGRPO_MAX_FILE_BYTES": str(1 << 40),
            "IHGRPO_KEY_FILES_BYTES": str(1 << 40),
            "IHGRPO_SANDBOX_IMAGE": image,
            "IHGRPO_LOG_LEVEL": "error",
        }
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "serve", "--sandbox", "in-process", "--port", str(port)),
            env={**os.environ, **settings},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            async with httpx.AsyncClient() as client:
                while child.returncode is None:
                    with contextlib.suppress(httpx.HTTPError):
                        if (await client.get(f"{url}/ready")).is_success:
                            break
                    await asyncio.sleep(0.2)
                else:
                    raise RuntimeError("the server did not start: run `ih-grpo serve` to see the reason")
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            await child.wait()


async def transfers(image: str, megabytes: int, repeats: int) -> tuple[float, float]:
    """Median MB per second of an upload and of a download."""
    head = b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    head += b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    up, down = [], []
    async with server(image) as url, httpx.AsyncClient(timeout=None) as client:
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
            assert received == megabytes * MB, received
            down.append(megabytes / (time.perf_counter() - began))
            await client.delete(path)
    return statistics.median(up), statistics.median(down)


async def call(session: FileSession, code: str = CODE) -> str:
    """Run ``code`` and return its output."""
    await session.invoke(code)
    result = await session.flush()
    assert result.status == "ok", result
    return result.stdout


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


async def container_mb(session: FileSession, host: str) -> float:
    """Memory of the session's container in MB, without the cache of files on disk."""
    await session.invoke(CODE)
    name = (await session.flush()).container
    assert name is not None

    def read() -> float:
        with contextlib.closing(docker.APIClient(base_url=host, version="auto")) as client:
            stats = client.stats(name, stream=False)["memory_stats"]
        cache = stats["stats"].get("total_inactive_file", stats["stats"].get("inactive_file", 0))
        return float(stats["usage"] - cache) / MB

    return await asyncio.to_thread(read)


async def imports(sandbox: DockerSandbox, host: str, repeats: int) -> None:
    """Print the time, CPU time and memory of the first import of each package, each in a new session."""
    print("\n| import in a new session | s | CPU s | additional MB |\n|---|--:|--:|--:|")
    for package in PACKAGES:
        seconds, cpu, memory = [], [], []
        for _ in range(repeats):
            session = sandbox.file_session(LIMITS)
            before = await container_mb(session, host)
            code = (
                "import time; wall, cpu = time.perf_counter(), time.process_time()\n"
                f"import {package}\n"
                "print(time.perf_counter() - wall, time.process_time() - cpu)"
            )
            wall_s, cpu_s = map(float, (await call(session, code)).split())
            seconds.append(wall_s)
            cpu.append(cpu_s)
            memory.append(await container_mb(session, host) - before)
            await session.close()
        row(f"`{package}`", *map(statistics.median, (seconds, cpu, memory)), digits=2)


def row(name: str, *values: float, digits: int = 1) -> None:
    print(f"| {name} | {' | '.join(f'{value:.{digits}f}' for value in values)} |", flush=True)


def spread(times: list[float]) -> tuple[float, float, float]:
    """10th, 50th and 95th percentile."""
    points = statistics.quantiles(times, n=20)
    return points[1], statistics.median(times), points[-1]


def pool(image: str) -> DockerSandbox:
    return DockerSandbox(
        DockerSandboxSettings(
            image=image,
            pool_size=1,
            max_containers=8,
            instance=instance_name("benchmark", image.rpartition(":")[2]),
            queue_timeout_s=300,
            start_timeout_s=300,
            run_limit_ceiling_s=60,
            grace_s=30,
        )
    )


def machine(host: str) -> str:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    with contextlib.closing(docker.DockerClient(base_url=host)) as client:
        engine = client.version()["Version"]
    return (
        f"{os.cpu_count()} cores ({cpu[1] if cpu else '?'}), load {os.getloadavg()[0]:.1f}, "
        f"Linux {platform.release()}, Python {platform.python_version()}, Docker {engine}"
    )


async def main(options: argparse.Namespace) -> None:
    host = default_docker_host()
    images: list[str] = options.image or [DEFAULT_IMAGE]
    image = images[-1]
    print(f"{machine(host)}, images {', '.join(images)}")
    up, down = await transfers(image, options.megabytes, 3)
    print("\n| transfer | MB/s |\n|---|--:|")
    row(f"upload of {options.megabytes} MB", up)
    row(f"download of {options.megabytes} MB", down)
    pools = {name: pool(name) for name in images}
    sandbox = pools[image]
    try:
        for each in pools.values():
            await each.start()
        sessions = {f"image `{name}`": pools[name].file_session(LIMITS) for name in images}
        loaded, imported = sandbox.file_session(LIMITS), sandbox.file_session(LIMITS)
        for session in (*sessions.values(), loaded, imported):
            await session.lease()
        size = options.megabytes * MB
        took = await timed(loaded.put("input.bin", size, zeros(size)))
        row(f"copy of {options.megabytes} MB into a container", options.megabytes / took * 1000)
        used = {name: await container_mb(session, host) for name, session in sessions.items()}
        plain = sessions[f"image `{image}`"]
        await call(imported, "import pandas, sklearn.linear_model, pyarrow.parquet")
        sessions |= {
            f"an input of {options.megabytes} MB": loaded,
            "pandas, sklearn, pyarrow imported": imported,
        }
        times = await dispatch(sessions, options.calls)
        print("\n| call of `print(1)`, ms | p10 | p50 | p95 |\n|---|--:|--:|--:|")
        for name, values in times.items():
            row(name, *spread(values))
        listing = [await timed(plain.changes()) for _ in range(options.calls)]
        print("\n| parked container, ms | p10 | p50 | p95 |\n|---|--:|--:|--:|")
        freeze, resume = await parked(plain, options.repeats)
        row("freeze", *spread(freeze))
        row("first call after that", *spread(resume))
        row("list changed files, none changed", *spread(listing))
        used["pandas, sklearn, pyarrow imported"] = await container_mb(imported, host)
        print("\n| idle container | MB | containers in 4 GB |\n|---|--:|--:|")
        for name, megabytes in used.items():
            row(name, megabytes, 4096 // megabytes, digits=0)
        await imports(sandbox, host, options.imports)
    finally:
        for each in pools.values():
            await each.stop()
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", action="append", help="image; several are compared, the last is examined")
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--imports", type=int, default=3, help="repeats of each import")
    asyncio.run(main(parser.parse_args()))
