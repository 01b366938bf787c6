"""The command `ih-grpo eval select`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from service.cli.output import abort, warn

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def select(
    run: Annotated[Path, typer.Argument(help="Output directory of an evaluation.")],
    out: Annotated[Path, typer.Option(help="File to write: JSON Lines that `data` of a recipe can name.")],
    low: Annotated[
        float, typer.Option("--min", min=0, max=1, help="Lowest pass rate to keep.", show_default=True)
    ] = 0.05,
    high: Annotated[
        float, typer.Option("--max", min=0, max=1, help="Highest pass rate to keep.", show_default=True)
    ] = 0.95,
) -> None:
    """Write the problems that a model solves sometimes: those with a pass rate within limits.

    Groups of samples that are all right or all wrong teach nothing in reinforcement learning, so training on
    problems between the two saves time. Measure pass rates with `ih-grpo eval` on the training problems.

    Rows keep all their columns, so a training run sees the same problems. The columns `pass_rate`, `samples`
    and `source` are added unless a row has them.

    \b
    Example:
      ih-grpo eval train.parquet --samples 4 --model runs/warm-start/checkpoints/checkpoint-120 \\
        --out runs/rates
      ih-grpo eval select runs/rates --out data/sometimes.jsonl
    """
    from trainer.data.decontamination import write_rows
    from trainer.evaluation.results import ResultsError, read_problems, read_results

    if low > high:
        abort(f"--min is {low:g}, above --max {high:g}")
    try:
        _, results = read_results(run)
        problems = read_problems(run)
    except ResultsError as error:
        abort(str(error))
    rewards: dict[tuple[str, str], list[float]] = defaultdict(list)
    texts: dict[tuple[str, str], tuple[str, str]] = {}
    for result in results:
        problem = (result.benchmark, result.problem_id)
        rewards[problem].append(float(result.is_solved))
        texts[problem] = (result.question, result.gold)
    rates = {problem: sum(values) / len(values) for problem, values in rewards.items()}
    # In the order of the source. Results are in the order in which episodes ended.
    ordered = dict.fromkeys([*problems, *rates])
    kept = [problem for problem in ordered if problem in rates and low <= rates[problem] <= high]
    if not kept:
        abort(f"none of {len(rates)} problems has a pass rate from {low:g} to {high:g}: widen the limits")
    if any(problem not in problems for problem in kept):
        warn("an older version ran this evaluation: rows have only the question and the answer")
    rows = (
        {
            "pass_rate": rates[problem],
            "samples": len(rewards[problem]),
            "source": ":".join(problem),
            **problems.get(problem, {"question": texts[problem][0], "answer": texts[problem][1]}),
        }
        for problem in kept
    )
    try:
        write_rows(out, rows)
    except OSError as error:
        abort(f"--out: cannot write {out} ({error.strerror})")
    typer.echo(f"{len(kept)} of {len(rates)} problems have a pass rate from {low:g} to {high:g}: {out}")
