"""Cost of a sandbox call: in-process and through the runner, compared with three alternatives.

    pip install llm-sandbox                 # optional: one of the alternatives
    DOCKER_HOST=unix:///... python benchmarks/sandbox.py

Calls alternate between all variants, so that a busy machine slows all of them. Prints the tables of
docs/reference/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import os
import platform
import random
import re
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path

import docker
import httpx
from pydantic import SecretStr
from sandbox_rivals import Call, docker_exec, llm_sandbox, plain_http

from service.episode.events import hidden_seconds
from service.sandbox.base import Sandbox, SessionLimits
from service.sandbox.docker.settings import DEFAULT_IMAGE, default_docker_host
from service.sandbox.factory import SandboxOptions, create_sandbox, instance_name
from service.sandbox.pooled_sandbox import PooledSandbox

CODE, OUTPUT = "print(1)", "1"
PAUSES_S = (0.0, 0.02, 0.05, 0.3)
LIMITS = SessionLimits(run_limit_s=20.0)
Idle = Callable[[], Awaitable[tuple[float, float]]]
"""Returns the numbers of idle and of starting containers of a pool."""


@contextlib.asynccontextmanager
async def own(sandbox: Sandbox, workers: int) -> AsyncGenerator[Call]:
    """Calls in ``workers`` open sessions, each with its own container and namespace."""
    free: asyncio.Queue[object] = asyncio.Queue()
    sessions = [sandbox.session(LIMITS) for _ in range(workers)]
    for session in sessions:
        free.put_nowait(session)

    async def call(code: str) -> str:
        session = await free.get()
        try:
            await session.invoke(code)
            return (await session.flush()).stdout
        finally:
            free.put_nowait(session)

    try:
        yield call
    finally:
        for session in sessions:
            await session.close()


@contextlib.asynccontextmanager
async def runner(pool_size: int, runtime: str | None) -> AsyncGenerator[tuple[Sandbox, Idle]]:
    """``ih-grpo runner`` in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        token, bind = secrets.token_hex(32), f"unix:{folder}/runner.sock"
        options = ["--bind", bind, "--warm-containers", str(pool_size), "--log-level", "warning"]
        if runtime is not None:
            options += ["--runtime", runtime]
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "service",
            "runner",
            *options,
            env={**os.environ, "IHGRPO_RUNNER_TOKEN": token},
        )
        client = create_sandbox(
            SandboxOptions(
                kind="runner", runner_addresses=(bind,), runner_token=SecretStr(token), connect_timeout_s=120
            )
        )
        http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=bind.removeprefix("unix:")),
            base_url="http://runner",
            headers={"Authorization": f"Bearer {token}"},
        )

        async def pool() -> tuple[float, float]:
            text = (await http.get("/metrics")).text
            values = dict(re.findall(r"^ihgrpo_pool_(idle|starting) (\S+)$", text, re.MULTILINE))
            return float(values["idle"]), float(values["starting"])

        try:
            await client.start()
            yield client, pool
        finally:
            await http.aclose()
            await client.stop()
            child.terminate()
            await child.wait()


async def timed(work: Awaitable[object]) -> float:
    """Duration of ``work`` in milliseconds."""
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1e3


async def dispatch(ways: dict[str, Call], calls: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(calls + 3):
        for name, call in ways.items():
            began = time.perf_counter()
            output = await call(CODE)
            if number >= 3:  # warm-up
                times[name].append((time.perf_counter() - began) * 1e3)
            if output.strip().strip('"').removesuffix("\\n") != OUTPUT:
                raise RuntimeError(f"{name}: {output!r}")
    return times


async def paced(ways: dict[str, Call], pause_s: float, calls: int) -> dict[str, list[float]]:
    """Durations of calls that come ``pause_s`` seconds after the one before, as while a model writes."""
    times: dict[str, list[float]] = {}
    for name, call in ways.items():
        times[name] = []
        for _ in range(calls):
            await asyncio.sleep(pause_s)
            times[name].append(await timed(call(CODE)))
    return times


async def throughput(call: Call, workers: int, seconds: float) -> float:
    """Calls per second with ``workers`` concurrent workers."""
    began = time.perf_counter()

    async def work() -> int:
        done = 0
        while time.perf_counter() - began < seconds:
            await call(CODE)
            done += 1
        return done

    counts = await asyncio.gather(*(work() for _ in range(workers)))
    return sum(counts) / (time.perf_counter() - began)


async def leases(sandbox: Sandbox, pool: Idle, count: int) -> list[float]:
    """Milliseconds from a new session's first block until a container has it, with a warm pool."""
    times = []
    for _ in range(count):
        while True:
            idle, starting = await pool()
            if idle >= 1 and not starting:
                break
            await asyncio.sleep(0.05)
        session = sandbox.session(LIMITS)
        times.append(await timed(session.invoke(CODE)))
        await session.flush()
        await session.close()
    return times


async def overlap(sandbox: Sandbox, *, eager: bool, writes_on_s: float, calls: int) -> float:
    """Share of the sandbox time that is hidden behind writing, for calls of 50 to 2,000 ms (log-uniform)."""
    rng = random.Random(0)
    durations = [0.05 * 40 ** rng.random() for _ in range(calls)]
    session = sandbox.session(SessionLimits(run_limit_s=20.0, eager=eager))
    hidden = wall = 0.0
    for duration in durations:
        await session.invoke(f"import time; time.sleep({duration})")
        await asyncio.sleep(writes_on_s)  # the model keeps writing
        flushed_at = time.time()
        result = await session.flush()
        wall += result.wall_seconds
        hidden += hidden_seconds(result.runs, flushed_at)
    await session.close()
    return hidden / wall


def machine(host: str, image: str) -> str:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    with contextlib.closing(docker.DockerClient(base_url=host)) as client:
        engine = client.version()["Version"]
    return (
        f"{os.cpu_count()} cores ({cpu[1] if cpu else '?'}), load {os.getloadavg()[0]:.1f}, "
        f"Linux {platform.release()}, Python {platform.python_version()}, Docker {engine}, image {image}"
    )


def table(title: str, rows: dict[str, Iterable[object]], *columns: str) -> None:
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for name, values in rows.items():
        print(
            f"| {name} | {' | '.join(f'{v:.2f}' if isinstance(v, float) else str(v) for v in values)} |",
            flush=True,
        )


def spread(times: list[float]) -> list[float]:
    return [statistics.median(times), statistics.quantiles(times, n=20)[-1]]


async def main(options: argparse.Namespace) -> None:
    host, image, workers = default_docker_host(), DEFAULT_IMAGE, options.workers
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # removes all containers
    print(f"{machine(host, image)}, runtime {options.runtime or 'of the daemon'}", flush=True)
    async with contextlib.AsyncExitStack() as stack:
        direct = create_sandbox(
            SandboxOptions(
                kind="in-process",
                pool_size=2,
                instance=instance_name("benchmark"),
                runtime=options.runtime,
            )
        )
        assert isinstance(direct, PooledSandbox)
        stack.push_async_callback(direct.stop)
        await direct.start()
        remote, its_pool = await stack.enter_async_context(runner(2, options.runtime))
        ways: dict[str, Call] = {
            "leased container, in-process": await stack.enter_async_context(own(direct, workers)),
            "leased container, through the runner": await stack.enter_async_context(own(remote, workers)),
            "`docker exec` a call": await stack.enter_async_context(docker_exec(host, image, workers)),
            "plain HTTP, `python3` a call, no isolation": await stack.enter_async_context(
                plain_http(workers)
            ),
        }
        other_lease = None
        try:
            call, other_lease = await stack.enter_async_context(llm_sandbox(host, image, workers))
            ways[f"llm-sandbox {importlib.metadata.version('llm-sandbox')} with its pool"] = call
        except ImportError:
            print("llm-sandbox is not installed: skipped (pip install llm-sandbox)")

        times = await dispatch(ways, options.calls)
        rate = {name: await throughput(call, workers, options.seconds) for name, call in ways.items()}
        rows = {name: [*spread(times[name]), round(rate[name], 1)] for name in ways}
        table("time to run `print(1)`, ms", rows, "p50", "p95", f"calls/s, {workers} concurrent")
        ours = {name: call for name, call in ways.items() if name.startswith("leased")}
        after = {pause_s: await paced(ours, pause_s, options.calls) for pause_s in PAUSES_S}
        rows = {
            f"{name}, {pause_s * 1e3:g} ms after the last call": spread(found[name])
            for name in ours
            for pause_s, found in after.items()
        }
        table("time to run `print(1)`, ms", rows, "p50", "p95")

        async def own_pool() -> tuple[float, float]:
            return direct.stats().idle, direct.stats().starting

        found = {
            "in-process": spread(await leases(direct, own_pool, options.leases)),
            "through the runner, including the connection": spread(
                await leases(remote, its_pool, options.leases)
            ),
        }
        if other_lease is not None:
            taken = [await timed(asyncio.to_thread(other_lease)) for _ in range(options.leases)]
            found["llm-sandbox's pool, reused container"] = spread(taken)
        table("lease from a warm pool, ms", found, "p50", "p95")

        shares: dict[str, list[float]] = {}
        for seconds in (0.0, 0.5, 1.0, 2.0):
            shares[f"{seconds:g} s"] = [
                await overlap(remote, eager=eager, writes_on_s=seconds, calls=options.overlap_calls)
                for eager in (True, False)
            ]
        table("the model keeps writing for", shares, "hidden share, eager", "hidden share, not eager")
    rates = {
        name: [await episodes(options.runtime, workers, 4 * options.seconds, reuse=reuse)]
        for name, reuse in (("a new container for each", False), ("containers reset and reused", True))
    }
    table("episodes of one call", rates, f"episodes/s, {workers} concurrent")


async def episodes(runtime: str | None, workers: int, seconds: float, *, reuse: bool) -> float:
    """Return how many sessions of one call run per second, ``workers`` at a time."""
    sandbox = create_sandbox(
        SandboxOptions(
            kind="in-process",
            pool_size=workers,
            max_containers=2 * workers,
            runtime=runtime,
            reuse=reuse,
            instance=instance_name("benchmark-episodes"),
        )
    )
    await sandbox.start()
    finished = 0
    try:
        until = time.perf_counter() + seconds

        async def work() -> None:
            nonlocal finished
            while time.perf_counter() < until:
                session = sandbox.session(LIMITS)
                await session.invoke(CODE)
                await session.flush()
                await session.close()
                finished += 1

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(workers)))
        return finished / (time.perf_counter() - began)
    finally:
        await sandbox.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=200, help="timed calls per variant")
    parser.add_argument("--runtime", help="OCI runtime of our containers, such as runsc (gVisor)")
    parser.add_argument("--workers", type=int, default=2, help="concurrent calls for the rate")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of the rate measurement")
    parser.add_argument("--leases", type=int, default=20)
    parser.add_argument(
        "--refill-s", type=float, default=3.0, help="pause in which the runner's pool fills up"
    )
    parser.add_argument("--overlap-calls", type=int, default=20)
    asyncio.run(main(parser.parse_args()))
