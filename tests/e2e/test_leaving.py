"""Cleanup after a client disconnects and after the server stops.

The server here keeps no warm containers: each one that exists belongs to an episode.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import TIMEOUT_S
from tests.e2e.server import ServerProcess, start
from tests.support.until import until
from trainer.quickstart.problems import PracticeProblem
from trainer.quickstart.traces import held_out_problems

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
Containers = Callable[[ServerProcess], set[str]]

# Two flushes: after the first one the episode has its container and continues for a while.
PROBLEMS = list(held_out_problems(20_260, 8, ("larger",)))


def question(problem: PracticeProblem) -> Any:
    return {"model": "quickstart", "messages": [{"role": "user", "content": problem.text}]}


@pytest.fixture(scope="module")
def cold(checkpoint: Path) -> Iterator[ServerProcess]:
    """A server without warm containers."""
    running = start(checkpoint, "--warm-containers", "0")
    yield running
    running.stop()


@pytest.fixture
async def patient(cold: ServerProcess) -> AsyncGenerator[openai.AsyncOpenAI, None]:
    async with openai.AsyncOpenAI(
        base_url=f"{cold.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
    ) as client:
        yield client


async def until_running(stream: Any, times: int) -> None:
    """Read until a flush runs for the given time."""
    async for chunk in stream:
        tools = getattr(chunk.choices[0].delta, "executed_tools", None) or []
        times -= sum(tool["status"] == "running" for tool in tools)
        if times == 0:
            return
    raise AssertionError("the stream ended before")


async def test_closed_stream_leaves_no_container(
    cold: ServerProcess, patient: openai.AsyncOpenAI, containers: Containers
) -> None:
    stream: Any = await patient.chat.completions.create(**question(PROBLEMS[0]), stream=True)
    await until_running(stream, times=2)
    await stream.response.aclose()
    await until(lambda: not containers(cold))


async def test_dropped_request_leaves_no_container(
    cold: ServerProcess, patient: openai.AsyncOpenAI, containers: Containers
) -> None:
    for problem in PROBLEMS:  # should one be answered before it is dropped, the next is tried
        before = await flushes(cold)
        request = asyncio.create_task(patient.chat.completions.create(**question(problem)))
        while await flushes(cold) == before:
            assert not request.done()
            await asyncio.sleep(0.01)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await until(lambda: not containers(cold))
        if request.cancelled():
            return
    raise AssertionError("each request was answered before it could be dropped")


async def flushes(server: ServerProcess) -> float:
    """Flushes that are done, by the server's own count."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{server.url}/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("ihgrpo_tool_flushes_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def test_sigterm_lets_streams_end_and_leaves_no_container(
    checkpoint: Path, containers: Containers
) -> None:
    server = start(checkpoint, "--warm-containers", "1")
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
    ) as client:
        stream: Any = await client.chat.completions.create(**question(PROBLEMS[1]), stream=True)
        await until_running(stream, times=1)
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        reasons = [chunk.choices[0].finish_reason async for chunk in stream]
    assert reasons[-1] == "stop"
    await stopping
    assert containers(server) == set()
    assert "Traceback" not in server.log()
