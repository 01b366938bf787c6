"""Learning with a tool: a small model learns from reward to batch its searches and to flush late.

    ih-grpo train warm-start --recipe recipes/multi-hop-warm-start.toml --out runs/multi-hop/start
    python benchmarks/tool_learning.py           # all runs, then held-out questions; rerun to resume
    python benchmarks/tool_learning.py --report  # table, benchmarks/tool_learning.json, docs/images/tools.svg

Two rewards, each with several seeds: with ``wait``, the recipe's, a right answer is worth less if the model
waited for its searches; with ``answer`` only the answer counts. Code runs under bubblewrap, without Docker.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import torch
from learning import bare_sandbox
from rich.console import Console

from benchmarks.machine import describe_machine
from trainer.evaluation.evaluate import EvalConfig
from trainer.evaluation.run import run_evaluation
from trainer.training.config import TrainConfig, load_config
from trainer.training.run import train

RECIPE: Final = Path("recipes/multi-hop.toml")
HERE: Final = Path("runs/multi-hop")
START: Final = HERE / "start"
REWARDS: Final = {"wait": 0.5, "answer": 0.0}
"""Discount for waiting, by the name of the runs."""
COLOURS: Final = {"wait": "#2166ac", "answer": "#999999"}
HELD_OUT: Final = 200
FIGURES: Final = {
    "correct": "correct answers",
    "calls_per_flush": "searches, a flush",
    "flushes": "flushes, an episode",
    "wait": "seconds waited, an episode",
}
"""Curves of the picture."""
SHARES: Final = {
    "one_flush": "episodes with one flush",
    "delay_rate": "delay rate",
    "gather": "`gather` in questions with independent searches",
}
"""Further columns of the table."""
INDEPENDENT: Final = ("Who is older, ", "Do ", "How old are ")
"""Beginnings of the questions whose searches are independent."""


def run_config(reward: str, seed: int, steps: int | None) -> TrainConfig:
    config = load_config(RECIPE, [f"seed={seed}", f"run_dir={HERE / f'{reward}-{seed}'}"])
    timely, correct = config.rewards
    options = {**timely.options, "discount": REWARDS[reward]}
    rewards = (timely.model_copy(update={"options": options}), correct)
    changes: dict[str, Any] = {"rewards": rewards}
    if steps is not None:
        changes["steps"] = steps
    return config.model_copy(update=changes)


def measure(model: Path, out: Path) -> None:
    """Evaluate a checkpoint on held-out questions at temperature 1, resuming if necessary."""
    config = load_config(RECIPE)
    run_evaluation(
        EvalConfig.model_validate(
            {
                "model": str(model),
                "benchmarks": [f"multi-hop-held-out:{HELD_OUT}"],
                "out": out,
                "tools": config.tools,
                "reward": "exact_match",
                "samples": 1,
                "top_p": 1.0,
                "threads": 1,
                "max_concurrent_episodes": 32,
            }
        ),
        Console(stderr=True),
        sandbox=bare_sandbox(HERE),
    )


def read_step(path: Path) -> dict[str, float]:
    """Metrics of one rollout, over all samples, including those filtered out of the gradient."""
    columns = ["question", "rewards", "tools", "delayed", "executed_by_model"]
    rows = pq.read_table(path, columns=columns).to_pylist()
    tools = [json.loads(row["tools"]) for row in rows]
    independent = [
        any("gather(" in block["code"] for tool in used for block in tool["blocks"])
        for row, used in zip(rows, tools, strict=True)
        if row["question"].startswith(INDEPENDENT)
    ]
    correct = [json.loads(row["rewards"]).get("exact_match", {}).get("value") for row in rows]
    flushes = sum(map(len, tools))
    return {
        "correct": statistics.fmean(value for value in correct if value is not None),
        "calls_per_flush": sum(len(tool["calls"]) for used in tools for tool in used) / max(flushes, 1),
        "flushes": flushes / len(rows),
        "one_flush": sum(len(used) == 1 for used in tools) / len(rows),
        "delay_rate": sum(row["delayed"] for row in rows)
        / max(sum(row["executed_by_model"] for row in rows), 1),
        "gather": statistics.fmean(independent) if independent else 0.0,
        "wait": sum(max(tool["waited_ms"] - tool["container_wait_ms"], 0) for used in tools for tool in used)
        / 1000
        / len(rows),
    }


def read_evaluation(out: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (out / "attempts.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "problem_id" in row]
    flushes = sum(row["flushes"] for row in rows)
    return {
        "correct": statistics.fmean(row["reward"] for row in rows),
        "calls_per_flush": sum(row["calls"] for row in rows) / max(flushes, 1),
        "flushes": flushes / len(rows),
        "wait": statistics.fmean(row["tool_seconds"] - row["hidden_seconds"] for row in rows),
        "delay_rate": sum(row["delayed"] for row in rows)
        / max(sum(row["executed_by_model"] for row in rows), 1),
        "questions": len(rows),
    }


def collect() -> dict[str, Any]:
    """Read all curves and evaluations of finished runs."""
    runs = sorted(path.parent for path in HERE.glob("*/rollouts"))
    return {
        "machine": describe_machine(),
        "curves": {
            run.name: [read_step(path) for path in sorted((run / "rollouts").glob("*.parquet"))]
            for run in runs
        },
        "held_out": {path.parent.name: read_evaluation(path) for path in sorted(HERE.glob("*/held-out"))},
    }


def table(results: dict[str, Any]) -> str:
    """Markdown table of the held-out questions: the start, and means over seeds (lowest to highest)."""
    lines = [
        "| | correct | searches per flush | flushes | delay rate | seconds waited |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    held_out = results["held_out"]
    for name, title in (("start", "start"), ("answer", "answer only"), ("wait", "answer and waiting time")):
        found = [value for key, value in held_out.items() if key.partition("-")[0] == name]
        if not found:
            continue
        cells = []
        for figure in ("correct", "calls_per_flush", "flushes", "delay_rate", "wait"):
            form = ".0%" if figure in ("correct", "delay_rate") else ".2f"
            values = [value[figure] for value in found]
            span = f" ({min(values):{form}} – {max(values):{form}})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):{form}}{span}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curve_table(results: dict[str, Any]) -> str:
    """Markdown table of the first and last steps of each run, over all samples."""
    columns = {**FIGURES, **SHARES}
    lines = ["| run | steps | " + " | ".join(columns.values()) + " |", "|---|---|" + "--:|" * len(columns)]
    for name, steps in results["curves"].items():
        for title, part in (("first 2", steps[:2]), ("last 3", steps[-3:])):
            values = [statistics.fmean(step[figure] for step in part) for figure in columns]
            lines.append(f"| {name} | {title} | {' | '.join(f'{value:.2f}' for value in values)} |")
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Plot the mean over the seeds as a line, lowest to highest as a band."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "tools"  # reproducible output
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), constrained_layout=True)
    for axis, (name, title) in zip(axes.flat, FIGURES.items(), strict=True):
        for reward, colour in COLOURS.items():
            runs = [run for key, run in results["curves"].items() if key.partition("-")[0] == reward]
            if not runs:
                continue
            steps = range(1, min(map(len, runs)) + 1)
            values = [[run[step - 1][name] for run in runs] for step in steps]

            def at(
                pick: Callable[[Sequence[float]], float], values: list[list[float]] = values
            ) -> list[float]:
                return [pick(value) for value in values]

            label = "answer and waiting time" if reward == "wait" else "answer only"
            axis.fill_between(steps, at(min), at(max), color=colour, alpha=0.15, linewidth=0)
            axis.plot(steps, at(statistics.fmean), color=colour, linewidth=2, label=label)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.set_ylim(0, 1 if name == "correct" else None)
        axis.grid(alpha=0.25)
    axes.flat[0].legend(fontsize=9, loc="lower right", title="reward")
    figure.savefig(path, metadata={"Title": "Learning to batch searches", "Date": None})
    described = path.read_text(encoding="utf-8").replace(
        "</title>",
        "</title>\n <desc>Correct answers, searches per flush, flushes, seconds waited, by step.</desc>",
        1,
    )
    path.write_text(described, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reward", choices=REWARDS, nargs="+", default=list(REWARDS))
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    parser.add_argument("--report", action="store_true", help="only read finished runs")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/tool_learning.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/tools.svg"))
    chosen = parser.parse_args()
    if not chosen.report:
        if not (START / "deferral.json").is_file():
            parser.error(f"{START} has no checkpoint: run the warm start first, see --help")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        measure(START, START / "held-out")
        for seed in chosen.seed:
            for reward in chosen.reward:
                config = run_config(reward, seed, chosen.steps)
                checkpoint = train(config, Console(stderr=True), sandbox=bare_sandbox(HERE))
                measure(checkpoint, config.run_dir / "held-out")
    results = collect()
    chosen.json.write_text(json.dumps(results) + "\n", encoding="utf-8")
    print(f"{curve_table(results)}\n\n{table(results)}")
    draw(results, chosen.picture)


if __name__ == "__main__":
    main()
