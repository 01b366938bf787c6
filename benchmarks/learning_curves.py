"""Table and plot of docs/reference/learning-experiment.md, from the rollouts of learning.py.

    pip install matplotlib
    python benchmarks/learning_curves.py    # writes benchmarks/learning.json, docs/images/learning.svg

`--from-json` only reads benchmarks/learning.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

Curves = dict[str, dict[str, list[float]]]
"""Run name to metric to the values of all steps."""

FIGURES: Final = {
    "reward": "reward, mean of all samples",
    "delay_rate": "delay rate",
    "calls": "blocks run, an episode",
    "flushes": "flushes, an episode",
}
COLOURS: Final = {"grpo-immediate": "#999999", "grpo-delayed": "#e08214", "ih-grpo": "#2166ac"}
TITLE: Final = "Three methods learn from a weak start"
DESCRIPTION: Final = "Reward, delay rate, blocks, flushes; step by step: mean and span of the seeds."
ENDS: Final = 3
"""Number of first and last steps that the table averages."""


def read_step(path: Path) -> dict[str, float]:
    """Metrics of one rollout, over all samples, including those filtered out of the gradient."""
    rows = pq.read_table(path, columns=["reward", "executed", "delayed", "tools"]).to_pylist()
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    executed = sum(row["executed"] for row in rows)
    return {
        "reward": statistics.fmean(rewards),
        "delay_rate": sum(row["delayed"] for row in rows) / max(executed, 1),
        "calls": executed / len(rows),
        "flushes": sum(len(json.loads(row["tools"])) for row in rows) / len(rows),
    }


def read_run(run: Path, steps: int) -> dict[str, list[float]]:
    """Read the first ``steps`` rollouts of a run.

    Raises:
        FileNotFoundError: the run has fewer rollouts.
    """
    read = [read_step(run / "rollouts" / f"rollout-{index:06}.parquet") for index in range(steps)]
    return {figure: [round(step[figure], 4) for step in read] for figure in FIGURES}


def methods(curves: Curves) -> list[str]:
    return [method for method in COLOURS if any(name.rpartition("-")[0] == method for name in curves)]


def over_seeds(curves: Curves, method: str, figure: str) -> list[list[float]]:
    """Values [seeds][steps] of a metric."""
    return [run[figure] for name, run in sorted(curves.items()) if name.rpartition("-")[0] == method]


def table(curves: Curves) -> str:
    """Markdown table of the first and last steps: mean over seeds (minimum – maximum)."""

    def cell(method: str, figure: str, ends: slice, form: str) -> str:
        values = [statistics.fmean(run[ends]) for run in over_seeds(curves, method, figure)]
        low, high = (format(pick(values), form) for pick in (min, max))
        return f"{format(statistics.fmean(values), form)} ({low} – {high})"

    lines = [
        f"| | reward, steps 1–{ENDS} | reward, last {ENDS} | delay rate, last {ENDS} "
        f"| flushes per episode, last {ENDS} |",
        "|---|--:|--:|--:|--:|",
    ]
    first, last = slice(ENDS), slice(-ENDS, None)
    for method in methods(curves):
        cells = (
            cell(method, "reward", first, ".2f"),
            cell(method, "reward", last, ".2f"),
            cell(method, "delay_rate", last, ".0%"),
            cell(method, "flushes", last, ".2f"),
        )
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(curves: Curves, path: Path) -> None:
    """Plot the mean over seeds as a line, minimum to maximum as a band, and each run as a thin line."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "learning"  # reproducible output
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), constrained_layout=True)
    for axis, (name, title) in zip(axes.flat, FIGURES.items(), strict=True):
        for method in methods(curves):
            runs = over_seeds(curves, method, name)
            steps = range(1, len(runs[0]) + 1)

            def at(pick: Callable[[Sequence[float]], float], runs: list[list[float]] = runs) -> list[float]:
                return [pick(values) for values in zip(*runs, strict=True)]

            colour = COLOURS[method]
            for run in runs:
                axis.plot(steps, run, color=colour, linewidth=0.5, alpha=0.5)
            axis.fill_between(steps, at(min), at(max), color=colour, alpha=0.15, linewidth=0)
            axis.plot(steps, at(statistics.fmean), color=colour, linewidth=2, label=method)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.set_ylim(0, 1 if name in ("reward", "delay_rate") else None)
        axis.grid(alpha=0.25)
    axes.flat[0].legend(fontsize=9, loc="lower right")
    if path.suffix != ".svg":
        figure.savefig(path)
        return
    figure.savefig(path, metadata={"Title": TITLE, "Date": None})
    described = path.read_text(encoding="utf-8").replace(
        "</title>", f"</title>\n <desc>{DESCRIPTION}</desc>", 1
    )
    path.write_text(described, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--steps", type=int, default=16, help="steps of each run to show")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/learning.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/learning.svg"), help=".svg or .png")
    parser.add_argument("--from-json", action="store_true")
    chosen = parser.parse_args()
    if not chosen.from_json:
        runs = sorted(path.parent for path in chosen.runs.glob("*/rollouts"))
        curves = {run.name: read_run(run, chosen.steps) for run in runs}
        kept: dict[str, Any] = {
            "curves": curves,
            **{
                "/".join(path.relative_to(chosen.runs).with_suffix("").parts): json.loads(path.read_text())
                for name in ("start-*.json", "*/result-*.json")
                for path in sorted(chosen.runs.glob(name))
            },
        }
        chosen.json.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    curves = json.loads(chosen.json.read_text(encoding="utf-8"))["curves"]
    print(table(curves))
    draw(curves, chosen.picture)


if __name__ == "__main__":
    main()
