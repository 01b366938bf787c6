"""Wall time and tokens of an episode: immediate, delayed, and delayed with eager execution, through the API.

    python benchmarks/deferral.py --immediate DIR --delayed DIR --problems math500.parquet --limit 32
    python benchmarks/deferral.py --delayed checkpoints/quickstart --immediate checkpoints/quickstart \\
        --problems quickstart-held-out:16 --force-mode

Each way has weights that were trained for it: ``--immediate`` is a checkpoint whose ``deferral.json`` has
mode "immediate" (or ``--force-mode`` is given), ``--delayed`` one with mode "deferred". The delayed
checkpoint is measured twice, without and with eager execution. Both are served by `ih-grpo serve`'s own
application in this process, with containers and over HTTP. Adapters are merged into ``--base``.

Tools take 50 to 2,000 ms: every block sleeps in its container before it runs, as if it called a service. The
time is drawn from the block's text, log-uniformly, so the same block takes the same time in all three ways. A
sleeping tool needs no CPU; tools that compute would compete with the engine if they share its cores.

The ways take turns problem by problem ("alone": one request at a time) or round by round ("together":
up to ``--concurrency`` requests), so that other load on the machine affects all of them. Wall time includes
the wait for a container. Each episode needs a new one, which takes long to start on a busy machine, so the
ratios are also given without it.
Ratios are of the sums over problems, with 95 % bootstrap intervals over problems.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import httpx
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.machine import describe_machine
from service.common.logs import configure
from service.deferral.policy import DeferralPolicy
from service.engines.checkpoint import default_sampling
from service.engines.factory import make_engine
from service.engines.model_lookup import locate
from service.episode.runner import EpisodeRunner
from service.sandbox.base import ExecutionResult, OnOutput, Sandbox, Session, SessionLimits
from service.sandbox.factory import SandboxOptions, create_sandbox, instance_name
from service.server.app import create_app_from
from service.server.settings import Settings
from service.tools.base import ToolHost
from tests.support.serving import serve
from trainer.data.problems import Problem
from trainer.data.sources import load_source
from trainer.evaluation.statistics import bootstrap_means, percentile_interval
from trainer.rewards.scorer import RewardScorer
from trainer.training.episodes import sample_seed

SHORTEST_MS: Final = 50
LONGEST_MS: Final = 2000
TRIES: Final = 3
RUN_LIMIT_S: Final = 120.0
"""Per flush: many blocks of two seconds must fit."""


class SlowBlocks:
    """A sandbox whose blocks sleep before they run.

    Args:
        sandbox: runs the code.
        shortest: minimum sleep, in seconds.
        longest: maximum sleep, in seconds.
    """

    def __init__(self, sandbox: Sandbox, *, shortest: float, longest: float) -> None:
        self._sandbox = sandbox
        self._range = shortest, longest

    async def start(self) -> None:
        await self._sandbox.start()

    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> Session:
        return SlowBlockSession(self._sandbox.session(limits, tools), self._range)

    async def ready(self) -> bool:
        return await self._sandbox.ready()

    async def stop(self) -> None:
        await self._sandbox.stop()


class SlowBlockSession:
    """A session of `SlowBlocks`."""

    def __init__(self, session: Session, seconds: tuple[float, float]) -> None:
        self._session = session
        self._range = seconds

    async def prepare(self) -> None:
        await self._session.prepare()

    async def invoke(self, code: str) -> None:
        await self._session.invoke(f"__import__('time').sleep({latency(code, *self._range):.3f})\n{code}")

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        return await self._session.flush(on_output)

    async def suspend(self) -> None:
        await self._session.suspend()

    async def resume(self) -> None:
        await self._session.resume()

    async def close(self) -> None:
        await self._session.close()


def latency(code: str, shortest: float, longest: float) -> float:
    """Return the seconds that a block takes: log-uniform between the bounds, and fixed for each text."""
    digest = hashlib.blake2b(code.strip().encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return shortest * math.exp(int.from_bytes(digest) / 2**64 * math.log(longest / shortest))


@dataclass(frozen=True, slots=True)
class Way:
    """One of the compared ways to run code."""

    name: str
    url: str
    eager: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """One episode."""

    problem: int
    seconds: float
    """Wall time of the request."""
    tokens: int
    flushes: int
    blocks: int
    delayed: int
    by_model: int
    """Blocks in flushes that the model requested."""
    tool_seconds: float
    waited: float
    """Seconds that the model waited for code."""
    container: float
    """Seconds that the model waited for a container."""
    hidden: float
    """Seconds of running code that overlapped with generation."""
    errors: tuple[str, ...]
    """Status of each flush that failed."""
    right: bool
    text: str

    @property
    def net_seconds(self) -> float:
        """Wall time without the wait for a container."""
        return self.seconds - self.container


@asynccontextmanager
async def served(args: argparse.Namespace, model: str, mode: str) -> AsyncGenerator[str, None]:
    """Serve a checkpoint on a free port; yield the URL.

    Raises:
        SystemExit: the checkpoint was trained for the other mode.
    """
    settings = Settings(
        model=model, base=args.base if _is_adapter(model) else None, engine=args.engine, device=args.device,
        dtype=args.dtype, max_slots=args.concurrency, sandbox="in-process", port=0, store_url="sqlite://",
        max_containers=args.concurrency + 2, max_concurrent_episodes=args.concurrency,
        run_limit_s=RUN_LIMIT_S, vllm_args=args.vllm_arg,
    )  # fmt: skip
    model_dir = locate(settings.model, base=settings.base)
    policy = DeferralPolicy.load(model_dir)
    if policy.mode != mode and not args.force_mode:
        raise SystemExit(f"{model} was trained with mode {policy.mode!r}, not {mode!r}; see --force-mode")
    policy = DeferralPolicy.model_validate({**policy.model_dump(), "mode": mode})
    containers = create_sandbox(
        SandboxOptions(
            kind="in-process", pool_size=min(2, args.concurrency), max_containers=args.concurrency + 2,
            queue_timeout_s=600.0, run_limit_s=RUN_LIMIT_S, instance=instance_name(f"deferral-{mode}"),
        )
    )  # fmt: skip
    sandbox = SlowBlocks(containers, shortest=args.shortest / 1000, longest=args.longest / 1000)
    engine = make_engine(settings.engine_settings(model_dir))
    runner = EpisodeRunner(engine, sandbox, policy, default_sampling(model_dir))
    async with serve(create_app_from(runner, settings)) as running:
        yield running.url


def _is_adapter(model: str) -> bool:
    return Path(model, "adapter_config.json").is_file()


async def ask(
    client: httpx.AsyncClient,
    scorer: RewardScorer,
    way: Way,
    index: int,
    problem: Problem,
    args: argparse.Namespace,
    sample: int,
) -> Measured:
    """Run one episode and measure it. Repeat it if the sandbox fails, up to `TRIES` times in all.

    Raises:
        SystemExit: the server or the sandbox failed.
    """
    for _ in range(TRIES):
        measured = await _ask_once(client, scorer, way, index, problem, args, sample)
        if "sandbox_error" not in measured.errors:
            return measured
    raise SystemExit(f"the sandbox failed {TRIES} times in a row: is the machine overloaded?")


async def _ask_once(
    client: httpx.AsyncClient,
    scorer: RewardScorer,
    way: Way,
    index: int,
    problem: Problem,
    args: argparse.Namespace,
    sample: int,
) -> Measured:
    body: dict[str, Any] = {
        "model": "measured", "messages": problem.messages, "seed": sample_seed(args.seed, index, sample),
        "temperature": args.temperature, "top_p": args.top_p,
        "deferral": {"eager": way.eager, "run_limit_s": RUN_LIMIT_S},
    }  # fmt: skip
    if args.max_tokens is not None:
        body["max_tokens"] = args.max_tokens
    body["model"] = (await client.get(f"{way.url}/v1/models")).json()["data"][0]["id"]
    began = perf_counter()
    reply = await client.post(f"{way.url}/v1/chat/completions", json=body)
    seconds = perf_counter() - began
    if reply.is_error:
        raise SystemExit(f"the server answered {reply.status_code}: {reply.text[:500]}")
    [choice] = reply.json()["choices"]
    usage, tools = reply.json()["usage"], choice["message"].get("executed_tools") or []
    reward = await scorer.score(choice["message"]["content"] or "", problem.answer)
    observed = usage["completion_tokens_details"]["observation_tokens"]
    return Measured(
        problem=index,
        seconds=seconds,
        tokens=usage["completion_tokens"] - observed,
        flushes=len(tools),
        blocks=sum(len(tool["blocks"]) for tool in tools),
        delayed=sum(tool["delayed"] for tool in tools),
        by_model=sum(len(tool["blocks"]) for tool in tools if tool["requested_by"] == "model"),
        tool_seconds=sum(tool["wall_ms"] for tool in tools) / 1000,
        waited=sum(max(tool["waited_ms"] - tool["container_wait_ms"], 0) for tool in tools) / 1000,
        container=sum(tool["container_wait_ms"] for tool in tools) / 1000,
        hidden=sum(tool["hidden_ms"] for tool in tools) / 1000,
        errors=tuple(tool["status"] for tool in tools if tool["status"] != "ok"),
        right=reward.value >= 1,
        text=choice["message"]["content"] or "",
    )


def rotated(ways: Sequence[Way], turn: int) -> Iterator[Way]:
    """Yield all ways, beginning with another one each turn."""
    yield from (ways[(turn + offset) % len(ways)] for offset in range(len(ways)))


async def measure_alone(
    client: httpx.AsyncClient, scorer: RewardScorer, ways: Sequence[Way], problems: Sequence[Problem],
    args: argparse.Namespace,
) -> dict[str, list[Measured]]:  # fmt: skip
    """Run one episode at a time."""
    found: dict[str, list[Measured]] = {way.name: [] for way in ways}
    turns = args.samples * len(problems)
    for turn in track(range(turns), "one at a time", console=Console(stderr=True)):
        sample, index = divmod(turn, len(problems))
        for way in rotated(ways, turn):
            found[way.name].append(await ask(client, scorer, way, index, problems[index], args, sample))
    return found


async def measure_together(
    client: httpx.AsyncClient, scorer: RewardScorer, ways: Sequence[Way], problems: Sequence[Problem],
    args: argparse.Namespace,
) -> tuple[dict[str, list[Measured]], dict[str, float]]:  # fmt: skip
    """Run the episodes of each round concurrently; return them and the seconds by way."""
    found: dict[str, list[Measured]] = {way.name: [] for way in ways}
    seconds = dict.fromkeys(found, 0.0)
    slots = asyncio.Semaphore(args.concurrency)

    async def limited(way: Way, index: int, sample: int) -> Measured:
        async with slots:
            return await ask(client, scorer, way, index, problems[index], args, sample)

    for turn in track(range(args.rounds), "together", console=Console(stderr=True)):
        for way in rotated(ways, turn):
            began = perf_counter()
            samples = range(turn * args.samples, (turn + 1) * args.samples)
            found[way.name] += await asyncio.gather(
                *(limited(way, index, sample) for index in range(len(problems)) for sample in samples)
            )
            seconds[way.name] += perf_counter() - began
    return found, seconds


def table(found: dict[str, list[Measured]], seconds: dict[str, float] | None = None) -> str:
    """Return the means per episode in Markdown, one row per way."""
    head = ["", "wall s", "tokens", "flushes", "blocks", "delay rate", "code s", "waited s", "hidden s"]
    head += ["container s", "errors", "right", *(["episodes/min"] if seconds else [])]
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    for name, episodes in found.items():
        n = len(episodes)
        by_model = sum(one.by_model for one in episodes)
        cells = [
            name,
            f"{sum(one.seconds for one in episodes) / n:.2f}",
            f"{sum(one.tokens for one in episodes) / n:.0f}",
            f"{sum(one.flushes for one in episodes) / n:.2f}",
            f"{sum(one.blocks for one in episodes) / n:.2f}",
            f"{sum(one.delayed for one in episodes) / by_model:.0%}" if by_model else "-",
            f"{sum(one.tool_seconds for one in episodes) / n:.2f}",
            f"{sum(one.waited for one in episodes) / n:.2f}",
            f"{sum(one.hidden for one in episodes) / n:.2f}",
            f"{sum(one.container for one in episodes) / n:.2f}",
            f"{sum(len(one.errors) for one in episodes)}",
            f"{sum(one.right for one in episodes)} of {n}",
        ]
        if seconds:
            cells.append(f"{60 * n / seconds[name]:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio(one: Sequence[Measured], other: Sequence[Measured], field: str) -> tuple[float, float, float]:
    """Return the ratio of sums over problems, one / other, and its 95 % bootstrap interval."""
    problems = sorted({episode.problem for episode in one})
    sums = np.array(
        [[sum(getattr(e, field) for e in way if e.problem == p) for way in (one, other)] for p in problems]
    )
    if len(problems) < 2 or not sums[:, 1].all():
        return float(sums[:, 0].sum() / sums[:, 1].sum()), math.nan, math.nan
    means = bootstrap_means(sums)
    low, high = percentile_interval(means[:, 0] / means[:, 1])
    return float(sums[:, 0].sum() / sums[:, 1].sum()), low, high


def comparison(found: dict[str, list[Measured]]) -> str:
    """Return the ratios of wall time, with and without container waits, and of tokens between the ways."""
    names = list(found)
    pairs = [(a, b) for b in names for a in names if names.index(a) > names.index(b)]
    lines = []
    for a, b in pairs:
        parts = []
        for field, label in (
            ("seconds", "wall time"), ("net_seconds", "without container waits"), ("tokens", "tokens")
        ):  # fmt: skip
            value, low, high = ratio(found[a], found[b], field)
            ends = "" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"
            parts.append(f"{label} {value:.2f}{ends}")
        lines.append(f"- {a} / {b}: {', '.join(parts)}")
    eager, plain = found["delayed, eager"], found["delayed"]
    same = sum(a.text == b.text for a, b in zip(eager, plain, strict=True))
    lines.append(
        f"- {same} of {len(plain)} delayed episodes have the same text with and without eager execution"
    )
    return "\n".join(lines)


async def measure(args: argparse.Namespace) -> None:
    """Serve both checkpoints, measure and print."""
    problems = list(load_source(args.problems, check_gold=False).problems)[: args.limit]
    print(
        f"{describe_machine('ih-grpo', 'torch', 'transformers', 'vllm')}; load {os.getloadavg()[0]:.1f} at "
        f"the start. {len(problems)} problems, blocks of {args.shortest} to {args.longest} ms, engine "
        f"{args.engine}, temperature {args.temperature}, top-p {args.top_p}.\n",
        flush=True,
    )
    results: dict[str, dict[str, list[Measured]]] = {}
    async with AsyncExitStack() as stack:
        immediate = await stack.enter_async_context(served(args, args.immediate, "immediate"))
        delayed = await stack.enter_async_context(served(args, args.delayed, "deferred"))
        ways = [
            Way("immediate", immediate, eager=False),
            Way("delayed", delayed, eager=False),
            Way("delayed, eager", delayed, eager=True),
        ]
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=None))
        scorer = await stack.enter_async_context(RewardScorer())
        for way in ways:  # a warm-up: first requests compile and start containers
            await ask(client, scorer, way, 0, problems[0], args, sample=-1)
        found = results["alone"] = await measure_alone(client, scorer, ways, problems, args)
        print(f"One episode at a time:\n\n{table(found)}\n\n{comparison(found)}\n", flush=True)
        if args.concurrency > 1:
            found, seconds = await measure_together(client, scorer, ways, problems, args)
            results["together"] = found
            heading = f"{args.concurrency} episodes concurrently"
            print(f"{heading}:\n\n{table(found, seconds)}\n\n{comparison(found)}")
    if args.json is not None:
        values = {
            kind: {name: [_as_json(one) for one in episodes] for name, episodes in found.items()}
            for kind, found in results.items()
        }
        args.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _as_json(episode: Measured) -> dict[str, object]:
    return {name: getattr(episode, name) for name in Measured.__slots__ if name != "text"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--immediate", required=True, help="checkpoint or adapter trained for immediate code")
    parser.add_argument("--delayed", required=True, help="checkpoint or adapter trained for delayed code")
    parser.add_argument("--base", help="base model of the adapters")
    parser.add_argument("--force-mode", action="store_true", help="accept checkpoints of the other mode")
    parser.add_argument("--problems", default="quickstart-held-out:16", help="as for `ih-grpo eval`")
    parser.add_argument("--limit", type=int, help="use only the first problems")
    parser.add_argument("--samples", type=int, default=1, help="samples of a problem (and round)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of episodes that run together")
    parser.add_argument("--concurrency", type=int, default=16, help="concurrent episodes; 1: only alone")
    parser.add_argument("--shortest", type=int, default=SHORTEST_MS, help="shortest block, in ms")
    parser.add_argument("--longest", type=int, default=LONGEST_MS, help="longest block, in ms")
    parser.add_argument("--engine", default="transformers", choices=["transformers", "vllm"])
    parser.add_argument(
        "--vllm-arg", action="append", default=[], help="NAME=VALUE of a vLLM engine argument"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.7)
    parser.add_argument("--max-tokens", type=int, help="token limit of an episode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for all episodes")
    args = parser.parse_args()
    configure("warning", "console")
    asyncio.run(measure(args))


if __name__ == "__main__":
    main()
