"""Load of many episodes on real containers: nothing lost, nothing leaked, and no harm by hostile episodes.

    DOCKER_HOST=unix:///... python benchmarks/episode_load.py                     # 3,000 episodes
    DOCKER_HOST=unix:///... python benchmarks/episode_load.py --minutes 15 --in-flight 40 --containers 8

A scripted engine writes each episode: three flushes whose results depend on each other through variables and
a file, and an answer computed from the last one. With ``--hostile 0.05``, five percent of the episodes run a
case of ``tests/hostile`` instead. Fails if an episode is lost, a benign result is wrong, or memory, file
descriptors or containers grow.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import platform
import random
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

import docker

from service.deferral.episode import Outcome
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.episode.events import ExecutedTool, Finished, FlushFinished
from service.episode.runner import EpisodeRunner
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DEFAULT_IMAGE, DockerSandboxSettings
from tests.hostile.cases import CASES, Case
from tests.support.reply_engine import ReplyEngine

FLUSHES = 3
POLICY = DeferralPolicy(max_episode_tokens=1_000_000, max_turn_tokens=1_000_000, run_limit_s=60.0)
END = "<|im_end|>"
MEMORY_MB, DESCRIPTORS = 48, 24
"""Accepted growth of memory and open descriptors after the first fifth of the load."""


@dataclass(frozen=True, slots=True)
class Load:
    """Size of the load. ``hostile`` is the share of hostile episodes; none starts after ``minutes``."""

    episodes: int = 3000
    minutes: float = float("inf")
    in_flight: int = 200
    containers: int = 32
    hostile: float = 0.05
    seed: int = 0
    image: str = DEFAULT_IMAGE


MAX_CODE_CHARS: Final = 4000
"""Longest hostile code."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources of this process and its containers at one time."""

    at_s: float
    memory_mb: float
    descriptors: int
    containers: int


@dataclass
class Report:
    """Result of one load. ``problems`` is empty if everything held."""

    load: Load
    seconds: float = 0.0
    started: int = 0
    benign: int = 0
    hostile: Counter[str] = field(default_factory=Counter)
    """Statuses of the hostile code."""
    flush_s: list[float] = field(default_factory=list)
    """Wait of the model at each flush of a benign episode, without the wait for a container."""
    container_wait_s: list[float] = field(default_factory=list)
    episode_s: list[float] = field(default_factory=list)
    """From the first block's container to the end of each benign episode."""
    usage: list[Usage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        first, last = self.early(), self.usage[-1]
        most = max(usage.containers for usage in self.usage)
        lines = [
            f"{self.started} episodes, {self.load.in_flight} in flight, at most {self.load.containers} "
            f"containers, {sum(self.hostile.values())} hostile: {self.seconds:.0f} s",
            f"{self.started / self.seconds:.2f} episodes/s, "
            f"{len(self.flush_s) / self.seconds:.2f} benign flushes/s",
            f"flush       p50 {_at(self.flush_s, 50):.3f} s  p95 {_at(self.flush_s, 95):.3f} s",
            f"episode     p50 {_at(self.episode_s, 50):.2f} s  p95 {_at(self.episode_s, 95):.2f} s  "
            "(without the wait for a container)",
            f"container   p50 {_at(self.container_wait_s, 50):.1f} s  "
            f"p95 {_at(self.container_wait_s, 95):.1f} s  (wait for one)",
            f"memory      {first.memory_mb:.0f} MB after a fifth, {last.memory_mb:.0f} MB at the end",
            f"descriptors {first.descriptors} after a fifth, {last.descriptors} at the end",
            f"containers  at most {most}, {last.containers} after the end",
            f"hostile     {dict(sorted(self.hostile.items()))}",
        ]
        return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in self.problems)])

    def early(self) -> Usage:
        """Return the usage after a fifth of the load, when all pools and caches are warm."""
        return next(usage for usage in self.usage if usage.at_s >= self.seconds / 5)


def _at(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] if ordered else float("nan")


def benign_blocks(number: int) -> list[tuple[str, str]]:
    """Return the code and the output of each flush of a benign episode."""
    x = number * 7 + 1
    return [
        (f"x = {number}\n```\nand\n```python\nx = x * 7 + 1\nprint(x)", str(x)),
        ("x += 1\n_ = open('kept', 'w').write(str(x))\nprint(x)", str(x + 1)),
        ("x += 1\nprint(x, open('kept').read())", f"{x + 2} {x + 1}"),
    ]


def script(number: int, hostile: Case | None) -> list[str]:
    """Return the code of each flush of an episode."""
    if hostile is not None:
        return [hostile.code, "print('still here')"]
    return [code for code, _ in benign_blocks(number)]


async def run_load(load: Load) -> Report:
    """Run the load in this process.

    Raises:
        SandboxError: the sandbox did not start.
    """
    report = Report(load)
    chosen = random.Random(load.seed)
    # An empty block never runs, and a very long one does not fit into the turn.
    with_code = [case for case in CASES if 0 < len(case.code.strip()) < MAX_CODE_CHARS]
    cases = {
        number: chosen.choice(with_code) for number in range(load.episodes) if chosen.random() < load.hostile
    }

    def reply(context: str) -> str:
        number = int(re.findall(r"^episode (\d+)$", context, re.MULTILINE)[0])
        codes = script(number, cases.get(number))
        turn = len(re.findall(r"^Code execution result: ", context, re.MULTILINE))
        if turn >= len(codes):
            last = re.findall(r"Code execution result: (-?\d+)", context)
            return f"The answer is \\boxed{{{last[-1] if last else 'unknown'}}}.{END}"
        return f"```python\n{codes[turn]}\n```\n<tool_call>"

    settings = DockerSandboxSettings(
        image=load.image,
        pool_size=min(4, load.containers),
        max_containers=load.containers,
        queue_timeout_s=36_000,
        start_timeout_s=600,
        daemon_timeout_s=120,
        grace_s=20,
        run_limit_ceiling_s=60,
        instance=f"load-{os.getpid()}",
    )
    runner = EpisodeRunner(ReplyEngine(reply), DockerSandbox(settings), POLICY, Sampling(max_tokens=10**6))
    await runner.sandbox.start()
    began = time.monotonic()
    numbers = iter(range(load.episodes))
    try:
        async with _sampling(report, settings, began):
            async with asyncio.TaskGroup() as group:
                for _ in range(load.in_flight):
                    group.create_task(_worker(runner, numbers, cases, report))
            report.seconds = time.monotonic() - began
    finally:
        await runner.sandbox.stop()
    report.usage.append(await asyncio.to_thread(_usage, settings, began))
    _judge(report, settings)
    return report


async def _worker(
    runner: EpisodeRunner, numbers: Iterable[int], cases: dict[int, Case], report: Report
) -> None:
    ends = time.monotonic() + report.load.minutes * 60
    for number in numbers:
        report.started += 1
        await _episode(runner, number, cases.get(number), report)
        if time.monotonic() > ends:
            return


async def _episode(runner: EpisodeRunner, number: int, case: Case | None, report: Report) -> None:
    prompt = runner.engine.tokenizer.encode(f"\nepisode {number}\n", allow_special=False)
    policy = POLICY if case is None else POLICY.model_copy(update={"run_limit_s": case.run_limit_s})
    episode = runner.start(prompt, policy)
    tools: list[ExecutedTool] = []
    outcome: Outcome | None = None
    began = time.monotonic()
    async for event in runner.run(episode, runner.sampling, episode_id=f"e{number}"):
        if isinstance(event, FlushFinished):
            tools.append(event.tool)
            if case is None and number % 50 == 0:
                await asyncio.sleep(0.5)  # some models write slowly, so their containers idle
        elif isinstance(event, Finished):
            outcome = event.outcome
    took = time.monotonic() - began
    name = "benign" if case is None else f"hostile {case.id}"
    if outcome is None:
        report.problems.append(f"episode {number} ({name}) has no end")
    if case is not None:
        report.hostile[tools[0].status if tools else "lost"] += 1
        return
    report.benign += 1
    outputs = [(tool.status, tool.output.strip()) for tool in tools]
    if outcome is not Outcome.ANSWER or outputs != [("ok", output) for _, output in benign_blocks(number)]:
        report.problems.append(f"episode {number} ended as {outcome} with {outputs}")
    if tools:
        waited = tools[0].container_wait_ms / 1000
        report.container_wait_s.append(waited)
        report.episode_s.append(took - waited)
        report.flush_s += [max(tool.waited_ms / 1000 - tool.container_wait_ms / 1000, 0) for tool in tools]


@contextlib.asynccontextmanager
async def _sampling(
    report: Report, settings: DockerSandboxSettings, began: float
) -> AsyncGenerator[None, None]:
    """Record the usage every two seconds, and show the progress every 30 seconds."""

    async def sample() -> None:
        for count in itertools.count():
            report.usage.append(await asyncio.to_thread(_usage, settings, began))
            if count % 15 == 0:
                ended = report.benign + sum(report.hostile.values())
                print(f"{ended:,} of {report.load.episodes:,} episodes", file=sys.stderr, flush=True)
            await asyncio.sleep(2)

    task = asyncio.create_task(sample())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _usage(settings: DockerSandboxSettings, began: float) -> Usage:
    client = docker.APIClient(base_url=settings.docker_host, version="auto", timeout=600)
    with contextlib.closing(client):
        label = f"ih-grpo.instance={settings.instance}"
        containers = len(client.containers(all=True, filters={"label": label}))
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Usage(
        at_s=time.monotonic() - began,
        memory_mb=resident_pages * os.sysconf("SC_PAGESIZE") / 2**20,
        descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        containers=containers,
    )


def _judge(report: Report, settings: DockerSandboxSettings) -> None:
    """Add the problems that the numbers show."""
    early, last = report.early(), report.usage[-1]
    counted = report.benign + sum(report.hostile.values())
    if counted != report.started or report.hostile["lost"]:
        report.problems.append(f"{report.started - counted + report.hostile['lost']} episodes are lost")
    if last.memory_mb > early.memory_mb + MEMORY_MB:
        report.problems.append("memory grows")
    if last.descriptors > early.descriptors + DESCRIPTORS:
        report.problems.append("descriptors grow")
    if max(usage.containers for usage in report.usage) > settings.max_containers or last.containers:
        report.problems.append("there are too many containers")


def machine() -> str:
    client = docker.APIClient(base_url=DockerSandboxSettings().docker_host, version="auto")
    with contextlib.closing(client):
        daemon = client.version()["Version"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, load average {load:.1f}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, Docker {daemon}, ih-grpo {version('ih-grpo')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Load()
    parser.add_argument("--episodes", type=int, default=default.episodes)
    parser.add_argument("--minutes", type=float, default=default.minutes, help="start none after this time")
    parser.add_argument("--in-flight", type=int, default=default.in_flight)
    parser.add_argument("--containers", type=int, default=default.containers)
    parser.add_argument("--hostile", type=float, default=default.hostile, help="share of hostile episodes")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--image", default=default.image)
    print(machine(), flush=True)
    report = asyncio.run(run_load(Load(**vars(parser.parse_args()))))
    print(report.text())
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
