"""Throughput through one, two and three runners.

    DOCKER_HOST=unix:///... python benchmarks/runner_load.py
    python benchmarks/runner_load.py --fake    # runners without containers or Docker

Starts the runners on this machine, each with ``--sessions`` containers. Every call sleeps for ``--sleep``
seconds, because code that computes would measure the cores that the runners share here and not the choice
between them. The load of all rounds is the same: six times as many concurrent sessions as one runner has
containers. In each round, one, two and three runners are measured one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from importlib.metadata import version

from pydantic import SecretStr

from service.sandbox.base import QueueTimeoutError, SessionLimits
from service.sandbox.docker.settings import DEFAULT_IMAGE
from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
from tests.support.fake_sandbox import TOKEN

LIMITS = SessionLimits(run_limit_s=60.0)


@contextlib.asynccontextmanager
async def started(arguments: argparse.Namespace) -> AsyncGenerator[tuple[list[str], SecretStr]]:
    """Start three runners and yield their addresses and their token."""
    token = TOKEN if arguments.fake else SecretStr(secrets.token_hex(32))
    environment = {**os.environ, "IHGRPO_RUNNER_TOKEN": token.get_secret_value()}
    with tempfile.TemporaryDirectory() as folder:
        addresses = [f"unix:{folder}/{number}.sock" for number in range(3)]
        children = []
        try:
            for address in addresses:
                fake = ["-m", "tests.support.fake_sandbox", address, os.devnull]
                real = ["-m", "service", "runner", "--bind", address, "--image", arguments.image]
                real += ["--max-sessions", str(arguments.sessions), "--warm-containers", "1"]
                real += ["--max-waiting", "1000", "--queue-timeout-s", "3600", "--log-level", "warning"]
                fake += [f"max_sessions={arguments.sessions}", "max_waiting=1000", "queue_timeout_s=3600"]
                command = [sys.executable, *(fake if arguments.fake else real)]
                children.append(await asyncio.create_subprocess_exec(*command, env=environment))
            yield addresses, token
        finally:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
            await asyncio.gather(*(child.wait() for child in children))


async def measure(addresses: list[str], token: SecretStr, arguments: argparse.Namespace) -> float:
    """Return the calls per second of the load through the runners at ``addresses``."""
    client = RunnerClient(RunnerClientSettings(tuple(addresses), token, connect_timeout_s=600.0))
    await client.start()
    calls = 0
    block = f"sleep {arguments.sleep}" if arguments.fake else f"import time; time.sleep({arguments.sleep})"

    async def session() -> None:
        nonlocal calls
        session = client.session(LIMITS)
        try:
            for _ in range(arguments.calls):
                await session.invoke(block)
                result = await session.flush()
                if result.status != "ok":
                    raise RuntimeError(f"a call failed: {result}")
                calls += 1
        except QueueTimeoutError as error:
            raise RuntimeError(f"a session found no container: {error}") from None
        finally:
            await session.close()

    began = time.monotonic()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(6 * arguments.sessions):
                group.create_task(session())
    finally:
        await client.stop()
    return calls / (time.monotonic() - began)


async def compare(arguments: argparse.Namespace) -> dict[int, list[float]]:
    """Return the calls per second of each round by the number of runners."""
    rates: dict[int, list[float]] = {1: [], 2: [], 3: []}
    async with started(arguments) as (addresses, token):
        for address in addresses:  # wait for all
            client = RunnerClient(RunnerClientSettings((address,), token, connect_timeout_s=600.0))
            await client.start()
            await client.stop()
        for _ in range(arguments.rounds):
            for number, found in rates.items():
                found.append(await measure(addresses[:number], token, arguments))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=4, help="containers of each runner")
    parser.add_argument("--calls", type=int, default=20, help="calls of each session")
    parser.add_argument("--sleep", type=float, default=1.0, help="seconds that each call sleeps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", default=DEFAULT_IMAGE)
    parser.add_argument("--fake", action="store_true", help="runners with a fake sandbox, without Docker")
    arguments = parser.parse_args()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("ih-grpo", "websockets", "uvicorn", "uvloop"))
    print(
        f"{os.cpu_count()} cores, {memory:.0f} GiB, load average {os.getloadavg()[0]:.1f}, Linux "
        f"{platform.release()}, Python {platform.python_version()}, {versions}"
    )
    rates = asyncio.run(compare(arguments))
    one = rates[1]
    print(f"{'runners':>7} {'calls/s':>8} {'ratio':>6}   (medians of {arguments.rounds} rounds)")
    for number, found in rates.items():
        ratio = statistics.median(rate / base for rate, base in zip(found, one, strict=True))
        print(f"{number:>7} {statistics.median(found):>8.2f} {ratio:>6.2f}")


if __name__ == "__main__":
    main()
