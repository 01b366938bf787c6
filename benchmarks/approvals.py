"""Share of a person's latency that an early request for approval hides, with a real sandbox.

    DOCKER_HOST=unix:///... python benchmarks/approvals.py

A scripted model calls a gated tool in a block, keeps writing for a while, and then asks for the output. A
scripted person approves the call some time after it was requested. With eager execution the request comes as
soon as the block is closed; without it, at the flush. Prints the table of docs/reference/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import time
from typing import Any

from benchmarks.scripted import two_blocks, warm_container, warm_sandbox
from service.engines.base import Sampling
from service.episode.events import ApprovalChanged, FlushFinished, FlushStarted, FlushSuspended
from service.sandbox.base import Sandbox
from service.tools.approval import Approvals
from service.tools.base import ToolSpec
from service.tools.toolset import Tool, ToolSet

BLOCK = "from tools import order\nnumber = order(item='tea')"
PAUSE = "The next step does not need the number yet. " * 200


async def episode(sandbox: Sandbox, person_s: float, writes_s: float, *, eager: bool) -> tuple[float, float]:
    """Return how long the flush waited for the decision and for its result, in seconds."""

    async def order(_arguments: dict[str, Any], _call_id: str) -> object:
        return 7

    text = {"type": "string"}
    schema = {"type": "object", "properties": {"item": text}, "required": ["item"]}
    spec = ToolSpec("order", "Order an item.", schema, {"type": "integer"}, needs_approval=True)
    tools = ToolSet([Tool(spec, order)])
    approvals = Approvals(tools.error_in, timeout_s=600, clock=time.time)
    runner = two_blocks(sandbox, BLOCK, PAUSE, "print(number)", writes_s)
    started = runner.start(runner.engine.tokenizer.encode("question", allow_special=False))
    flushed_at = 0.0
    decided_at: list[float] = []

    async def decide(request_id: str) -> None:
        await asyncio.sleep(person_s)
        approvals.decide(request_id, approve=True)
        decided_at.append(time.time())

    people: list[asyncio.Task[None]] = []
    async for event in runner.run(
        started,
        Sampling(max_tokens=5000),
        episode_id="benchmark",
        tools=tools,
        approvals=approvals,
        eager=eager,
    ):
        match event:
            case ApprovalChanged(request) if request.approve is None:
                people.append(asyncio.create_task(decide(request.id)))
            case FlushStarted():
                flushed_at = time.time()
            case FlushSuspended():
                await approvals.settled()
            case FlushFinished(flush):
                if flush.status != "ok" or len(flush.calls) != 1:
                    raise SystemExit(f"the flush failed: {flush}")
                return max(decided_at[0] - flushed_at, 0.0), time.time() - flushed_at
    raise SystemExit("the episode had no flush")


async def main(options: argparse.Namespace) -> None:
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {options.writes_s:g} s of writing")
    print("\n| person decides after | request | hidden share | wait of the model, s |")
    print("| --- | --- | --- | --- |")
    async with warm_sandbox() as sandbox:
        for person_s in options.latencies:
            for eager in (True, False):
                shares, waits = [], []
                for _ in range(options.episodes):
                    await warm_container(sandbox)
                    for_person, whole = await episode(sandbox, person_s, options.writes_s, eager=eager)
                    shares.append(1 - min(for_person / person_s, 1.0))
                    waits.append(whole)
                when = "while the model writes" if eager else "at the flush"
                share, wait = statistics.median(shares), statistics.median(waits)
                print(f"| {person_s:g} s | {when} | {share:.2f} | {wait:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=3, help="episodes per row")
    parser.add_argument("--latencies", type=float, nargs="+", default=[1, 2, 4, 8], metavar="SECONDS")
    parser.add_argument("--writes-s", type=float, default=4.0, help="time that the model keeps writing")
    asyncio.run(main(parser.parse_args()))
