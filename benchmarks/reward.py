"""Throughput of the reward function: respelled gold answers, wrong answers and hostile answers.

    python benchmarks/reward.py --benchmarks DIR --workers 2

``DIR`` holds parquet files with ``reward_model.ground_truth``. The hostile answers are few and repeated.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import resource
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from trainer.data.problems import load_problems
from trainer.rewards import RewardScorer

HOSTILE = (
    "1000000!",
    "9^{9^{9^{9}}}",
    r"\binom{1000000}{500000}",
    r"\int_0^{\infty} e^{-x^3}\sin(x^2)\,dx",
    "(" * 200 + "1" + ")" * 200,
    "(x+y+z+w)^{300}",
)


def respelled(gold: str) -> str:
    """Return ``gold`` in another spelling, so that a worker has to compare the expressions."""
    return gold.replace(r"\frac", r"\dfrac").replace("+", " + ") + r"\,."


async def timed(scorer: RewardScorer, name: str, pairs: list[tuple[str, str]]) -> None:
    started = time.perf_counter()
    rewards = await asyncio.gather(*(scorer.score(rf"\boxed{{{a}}}", gold) for a, gold in pairs))
    wall = time.perf_counter() - started
    reasons = Counter(reward.reason for reward in rewards)
    print(
        f"{name}: {len(pairs)} answers in {wall:.2f} s, {len(pairs) / wall:.0f} per second; {dict(reasons)}"
    )
    alone = []
    for answer, gold in pairs[:20]:
        started = time.perf_counter()
        await scorer.score(rf"\boxed{{{answer}}}", gold)
        alone.append(time.perf_counter() - started)
    alone.sort()
    print(f"  one at a time: median {1e3 * alone[len(alone) // 2]:.1f} ms, worst {1e3 * alone[-1]:.1f} ms")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--benchmarks", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--deadline", type=float, default=1.0, help="time limit per answer in seconds")
    parser.add_argument("--hostile", type=int, default=24, help="number of hostile answers")
    a = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, ", end=""
    )
    print(f"math-verify {version('math-verify')}, {a.workers} workers, deadline {a.deadline} s")
    golds = [
        p.answer for path in sorted(a.benchmarks.glob("*.parquet")) for p in load_problems(path).problems
    ]
    async with RewardScorer(workers=a.workers, deadline_s=a.deadline) as scorer:
        started = time.perf_counter()
        await asyncio.gather(*(scorer.score(r"\boxed{1.0}", "1") for _ in range(2 * a.workers)))
        print(f"start of the workers: {time.perf_counter() - started:.2f} s")
        before = scorer.worker_pids
        await timed(scorer, "gold answers", [(gold, gold) for gold in golds])
        await timed(scorer, "respelled gold answers", [(respelled(gold), gold) for gold in golds])
        await timed(scorer, "answers of the next problem", list(itertools.pairwise(golds)))
        if a.hostile:
            await timed(
                scorer, "hostile answers", [(HOSTILE[i % len(HOSTILE)], "204") for i in range(a.hostile)]
            )
        print(f"workers lost: {len(set(before) - set(scorer.worker_pids))} of {len(before)}")
    print(f"CPU time of the workers: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime:.1f} s")


if __name__ == "__main__":
    asyncio.run(main())
