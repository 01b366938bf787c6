"""Costs of the API process alone, with a scripted engine and sandbox.

    python benchmarks/serving_api.py

- idle: CPU while 500 streams wait for a flush that never ends.
- memory: resident size over 5,000 streamed requests, each with a deferred call and an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil

from tests.support.scripted import ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app

PAYLOAD = {"model": "scripted", "messages": [{"role": "user", "content": "What is 6 x 7?"}], "stream": True}


class Endless(ScriptedSandbox):
    """A sandbox whose flushes never end."""

    def session(self, limits: Any, tools: Any = None) -> Any:
        session: Any = super().session(limits, tools)
        session.flush = asyncio.Event().wait
        return session


class CallAndAnswer(ScriptedEngine):
    """An engine that calls the sandbox in the first turn of an episode and answers in the second."""

    async def generate(self, prompt_ids: Any, sampling: Any, stop_token_ids: Any = ()) -> Any:
        called = "print(6 * 7)" in self.tokenizer.decode(prompt_ids)
        self._turns = ["\\boxed{42}<|im_end|>" if called else "```python\nprint(6 * 7)\n```\n<tool_call>"]
        async for chunk in super().generate(prompt_ids, sampling, stop_token_ids):
            yield chunk


def serve(kind: str, port: int) -> None:
    import uvicorn

    from service.common import logs

    sandbox = (Endless if kind == "idle" else ScriptedSandbox)(lambda _blocks: printed("42\n"))
    engine = CallAndAnswer("")
    for double, names in ((engine, ["calls"]), (sandbox, ["sessions", "limits"])):
        for name in names:
            # Test doubles record all calls, which must not be measured.
            setattr(double, name, deque(maxlen=10))
    logs.configure("error", "console")
    app = make_app(engine, sandbox, max_concurrent_episodes=1000, max_queued_episodes=1000)
    uvicorn.run(app, port=port, log_level="warning", timeout_graceful_shutdown=1)


@contextmanager
def served(kind: str) -> Iterator[tuple[psutil.Process, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, "--serve", kind, "--port", str(port)])
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.2)
        yield psutil.Process(process.pid), f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))


async def idle(api: psutil.Process, url: str, streams: int, seconds: float) -> None:
    waiting = asyncio.Semaphore(0)

    async def wait() -> None:
        async with session.stream("POST", url, json=PAYLOAD) as response:
            async for line in response.aiter_lines():
                if '"running"' in line:
                    waiting.release()

    async with client() as session:
        tasks = [asyncio.create_task(wait()) for _ in range(streams)]
        for _ in tasks:
            await waiting.acquire()
        await asyncio.sleep(2)
        before, begin = _cpu(api), time.perf_counter()
        await asyncio.sleep(seconds)
        share = (_cpu(api) - before) / (time.perf_counter() - begin)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(f"{streams} streams waiting for a flush for {seconds:.0f} s: {100 * share:.2f} % of one core\n")


async def memory(api: psutil.Process, url: str, requests: int) -> None:
    gate = asyncio.Semaphore(32)

    async def one() -> None:
        async with gate, session.stream("POST", url, json=PAYLOAD) as response:
            last = [line async for line in response.aiter_lines() if line][-1]
            assert last == "data: [DONE]", last

    async with client() as session:
        print("| requests | resident size of the API process, MB |\n|--:|--:|")
        step = requests // 10
        for done in range(0, requests + 1, step):
            print(f"| {done} | {api.memory_info().rss / 1e6:.1f} |", flush=True)
            if done < requests:
                await asyncio.gather(*(one() for _ in range(step)))


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--serve", choices=("idle", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.port)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}\n")
    with served("idle") as (api, url):
        asyncio.run(idle(api, url, options.streams, options.seconds))
    with served("memory") as (api, url):
        asyncio.run(memory(api, url, options.requests))
    return None


if __name__ == "__main__":
    main()
