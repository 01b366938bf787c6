"""Asynchronous against synchronous training: steps per hour and reward, with tools of heavy-tailed latency.

    python benchmarks/async_training.py --seeds 0 1 2

A tiny model learns to run the right one of two programs. Engine, reward and trainer are real. The tools are
simulated: each flush waits for a time from a log-normal distribution and uses no CPU, as a remote tool. For
each seed the two modes run one after the other, in alternating order, and differ only in ``max_staleness``.
"""

# ruff: noqa: ARG002 - transformers defines the arguments of a callback

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any, Final

import torch
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from service.sandbox.base import ExecutionResult, OnOutput, Session, SessionLimits
from tests.support.scripted import ScriptedSandbox, ScriptedSession
from tests.support.toy_task import GOLD, QUESTION, make_toy_checkpoint, run_print
from trainer.rewards import FinishedEpisode
from trainer.training.config import TrainConfig
from trainer.training.run import train
from trainer.training.trainer import IHGRPOTrainer

SHORTEST_S: Final = 0.05
LONGEST_S: Final = 8.0


async def correct_by_tool(episode: FinishedEpisode, row: Mapping[str, Any]) -> float:
    """Reward 1 for a correct answer after a tool call; without the call a model soon learns to skip it."""
    return float(bool(episode.tools) and episode.answer == row["answer"])


class SlowTools(ScriptedSandbox):
    """A sandbox whose flushes take a time from a log-normal distribution.

    Args:
        median: in seconds.
        sigma: standard deviation of the logarithm.
        seed: of the draws.
    """

    def __init__(self, *, median: float, sigma: float, seed: int) -> None:
        super().__init__(run_print)
        self._median, self._sigma = median, sigma
        self._random = Random(seed)

    def session(self, limits: SessionLimits, tools: object = None) -> Session:
        self.limits.append(limits)
        return SlowSession(self._draw)

    def _draw(self) -> float:
        drawn = self._random.lognormvariate(math.log(self._median), self._sigma)
        return min(max(drawn, SHORTEST_S), LONGEST_S)


class SlowSession(ScriptedSession):
    """A session of `SlowTools`; ``draw`` returns the latency of the next flush in seconds."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__(run_print)
        self._draw = draw

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        seconds = self._draw()
        await asyncio.sleep(seconds)
        return replace(await super().flush(on_output), wall_seconds=seconds, waited_seconds=seconds)


class Timer(TrainerCallback):
    """Seconds from the start of training to its end, without loading and saving the model."""

    def __init__(self) -> None:
        self._began = 0.0
        self.seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == state.max_steps and not self.seconds:
            self.seconds = time.monotonic() - self._began


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    steps_per_hour: float
    rewards: Sequence[float]
    metrics: Sequence[dict[str, float]]

    def mean(self, name: str) -> float:
        return mean(entry[name] for entry in self.metrics)


def run(folder: Path, checkpoint: Path, chosen: argparse.Namespace, *, seed: int, staleness: int) -> Run:
    data = folder / "problems.jsonl"
    data.write_text(json.dumps({"question": QUESTION, "answer": GOLD}) + "\n", encoding="utf-8")
    run_dir = folder / f"run-{seed}-{staleness}"
    shutil.rmtree(run_dir, ignore_errors=True)
    config = TrainConfig.model_validate(
        {
            "model": str(checkpoint), "data": [str(data)], "run_dir": run_dir, "seed": seed,
            "steps": chosen.steps, "prompts_per_step": 4, "group_size": 8, "min_valid_samples": 2,
            "min_group_std": 0.0, "oversample": 1.0, "micro_batch_samples": 16,
            "learning_rate": chosen.learning_rate, "dtype": "float32", "device": "cpu", "threads": 1,
            "engine_slots": 64, "max_concurrent_episodes": 128, "save_every": chosen.steps,
            "save_rollouts": False, "rewards": [{"name": "benchmarks.async_training:correct_by_tool"}],
             "tensorboard": False, "max_staleness": staleness,
        }
    )  # fmt: skip
    timer = Timer()

    class TimedTrainer(IHGRPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(timer)

    last = train(
        config,
        Console(file=io.StringIO()),
        sandbox=SlowTools(median=chosen.median, sigma=chosen.sigma, seed=seed),
        trainer_class=TimedTrainer,
    )
    history = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    metrics = [entry for entry in history if "reward" in entry]
    return Run(chosen.steps / timer.seconds * 3600, [entry["reward"] for entry in metrics], metrics)


def describe_machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "trl"))
    return (
        f"{os.cpu_count()} cores ({name}), load {os.getloadavg()[0]:.1f}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {versions}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--staleness", type=int, default=2, help="max_staleness of the asynchronous runs")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--median", type=float, default=0.5, help="median latency of a tool in seconds")
    parser.add_argument("--sigma", type=float, default=1.2, help="standard deviation of its logarithm")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        checkpoint = make_toy_checkpoint(here / "start")
        print(
            "| seed | mode | steps per hour | reward, all steps | reward, last third "
            "| staleness, mean (max) |"
        )
        print("| --: | --- | --: | --: | --: | --: |")
        ratios, differences = [], []
        for place, seed in enumerate(chosen.seeds):
            modes = (0, chosen.staleness) if place % 2 == 0 else (chosen.staleness, 0)
            runs = {mode: run(here, checkpoint, chosen, seed=seed, staleness=mode) for mode in modes}
            for mode, result in sorted(runs.items()):
                age = "0 (0)"
                if mode:
                    oldest = max(entry["async/staleness_max"] for entry in result.metrics)
                    age = f"{result.mean('async/staleness'):.2f} ({oldest:.0f})"
                third = result.rewards[-len(result.rewards) // 3 :]
                name = "asynchronous" if mode else "synchronous"
                print(
                    f"| {seed} | {name} | {result.steps_per_hour:,.0f} | {mean(result.rewards):.3f} "
                    f"| {mean(third):.3f} | {age} |",
                    flush=True,
                )
            fast, slow = runs[chosen.staleness], runs[0]
            ratios.append(fast.steps_per_hour / slow.steps_per_hour)
            third = len(fast.rewards) // 3
            differences.append(mean(fast.rewards[-third:]) - mean(slow.rewards[-third:]))
            waits = [fast.mean(f"async/{who}_wait_seconds") for who in ("trainer", "room")]
            print(
                f"seed {seed}: {ratios[-1]:.2f} times the steps per hour; reward of the last third "
                f"{differences[-1]:+.3f}; flushes per episode {slow.mean('flushes'):.2f} and "
                f"{fast.mean('flushes'):.2f}; a step waited {waits[0]:.2f} s for its rollout, and a rollout "
                f"{waits[1]:.2f} s for room; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    print(
        f"lowest ratio {min(ratios):.2f}; mean difference of the last third's reward {mean(differences):+.3f}"
    )


if __name__ == "__main__":
    main()
