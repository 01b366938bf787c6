"""Learning experiment: nine runs from a weak start (three methods, three seeds) with the same budget.

    ih-grpo train warm-start --recipe recipes/quickstart-warm-start-weak.toml --out runs/learning/start
    python benchmarks/learning.py            # all nine runs; rerun to resume
    python benchmarks/learning_curves.py     # table and plot of the documentation

Code runs under bubblewrap, without Docker. `--method` and `--seed` select runs; a larger `--steps` continues
finished runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
import venv
from pathlib import Path
from random import Random
from typing import Any, Final, get_args

import torch
from rich.console import Console

from service.deferral.policy import DeferralPolicy
from service.sandbox.base import Sandbox
from service.sandbox.factory import SandboxOptions, create_sandbox
from trainer.quickstart.evaluate import ProblemResult, evaluate
from trainer.quickstart.problems import FAMILIES
from trainer.quickstart.traces import draw_problem, held_out_problems
from trainer.training.config import Method, TrainConfig, load_config
from trainer.training.run import train
from trainer.training.run_files import write_atomically

RECIPE: Final = Path("recipes/quickstart-learning.toml")
HERE: Final = Path("runs/learning")
START: Final = HERE / "start"
METHODS: Final[tuple[Method, ...]] = get_args(Method)
SEEDS: Final = (0, 1, 2)
PROBLEMS: Final = 4000
HELD_OUT: Final = 128
FAMILIES_USED: Final = tuple(name for name in FAMILIES if name != "multiples")
"""All except the one whose first attempt always runs into the time limit and would dominate the run time."""


def write_problems(path: Path) -> None:
    """Write the training set, without held-out problems."""
    rng = Random("learning")
    problems = (draw_problem(rng, held_out=False, families=FAMILIES_USED) for _ in range(PROBLEMS))
    lines = (json.dumps({"question": p.text, "answer": str(p.answer)}) + "\n" for p in problems)
    write_atomically(path, "".join(lines).encode())


def bare_sandbox(folder: Path = HERE) -> Sandbox:
    """Return a sandbox whose interpreter, made in ``folder``, has no packages: no problem needs any, and
    importing numpy and sympy for every episode would dominate the run time."""
    python = folder.absolute() / "python"
    if not python.is_dir():
        venv.create(python, symlinks=True)
    return create_sandbox(
        SandboxOptions(
            kind="process",
            python=str(python / "bin" / "python"),
            pool_size=4,
            max_containers=8,
            queue_timeout_s=600,
        )
    )


def measure(model: Path, policy: DeferralPolicy, seed: int) -> dict[str, float]:
    """Evaluate held-out problems at temperature 1, the same ones for every model."""
    results: list[ProblemResult] = asyncio.run(
        evaluate(
            model,
            list(held_out_problems(0, HELD_OUT, FAMILIES_USED)),
            bare_sandbox(),
            policy=policy,
            temperature=1.0,
            seed=seed,
            concurrency=32,
        )
    )
    samples = [result.sample for result in results]
    return {
        "solved": sum(result.is_correct for result in results) / len(results),
        "delay_rate": sum(s.delayed for s in samples) / max(sum(s.executed_by_model for s in samples), 1),
        "flushes": sum(len(s.tools) for s in samples) / len(samples),
    }


def run_config(method: Method, seed: int, steps: int | None) -> TrainConfig:
    changes = [f"method={method}", f"seed={seed}", f"run_dir={HERE / f'{method}-{seed}'}"]
    if steps is not None:
        changes += [f"steps={steps}", f"save_every={steps}"]
    return load_config(RECIPE, changes)


def learn(config: TrainConfig, console: Console) -> None:
    """Train to the last step, unless already done."""
    if (config.run_dir / "checkpoints" / f"checkpoint-{config.steps}").is_dir():
        return
    console.rule(f"{config.method}, seed {config.seed}")
    began = time.monotonic()
    train(config, console, sandbox=bare_sandbox())
    write_json(
        config.run_dir / "training.json",
        {"steps": config.steps, "seconds": time.monotonic() - began, **machine()},
    )


def examine(config: TrainConfig) -> None:
    """Evaluate the last checkpoint, and the start in the same mode, unless already done."""
    policy = config.resolve_policy(START)
    start = HERE / f"start-{policy.mode}.json"
    if not start.is_file():
        write_json(start, measure(START, policy, seed=0))
    checkpoint = config.run_dir / "checkpoints" / f"checkpoint-{config.steps}"
    result = config.run_dir / f"result-{config.steps}.json"
    if not result.is_file():
        write_json(result, measure(checkpoint, policy, seed=config.seed))


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return {
        "machine": f"{os.cpu_count()} cores, {name}",
        "load": os.getloadavg()[1],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--seed", type=int, choices=SEEDS)
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    parser.add_argument("--only", choices=["train", "measure"], help="default: train all, then measure all")
    chosen = parser.parse_args()
    if not (START / "deferral.json").is_file():
        parser.error(f"{START} has no checkpoint: create the weak start first, see --help")
    torch.set_num_threads(1)
    if not (problems := HERE / "problems.jsonl").is_file():
        write_problems(problems)
    configs = [
        run_config(method, seed, chosen.steps)
        for seed in (SEEDS if chosen.seed is None else (chosen.seed,))
        for method in (METHODS if chosen.method is None else (chosen.method,))
    ]
    if chosen.only != "measure":
        for config in configs:
            learn(config, Console(stderr=True))
    if chosen.only != "train":
        for config in configs:
            examine(config)


if __name__ == "__main__":
    main()
