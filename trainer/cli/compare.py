"""The command `ih-grpo eval compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.cli.output import abort

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Output directory of an evaluation.")],
    second: Annotated[Path, typer.Argument(help="Output directory of another evaluation.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory for comparison.json and comparison.html.")
    ] = None,
) -> None:
    """Compare two evaluations problem by problem: difference, 95 % interval and p-value per benchmark.

    \b
    Example:
      ih-grpo eval compare runs/eval-base runs/eval-trained --out runs/comparison
    """
    from trainer.evaluation.compare import compare_runs, comparison_notes, comparison_table, write_comparison
    from trainer.evaluation.results import ResultsError

    console = Console()
    try:
        comparison = compare_runs(first, second)
        if out is not None:
            write_comparison(out, comparison)
    except ResultsError as error:
        abort(str(error))
    except OSError as error:
        abort(f"--out: cannot write to {out} ({error.strerror})")
    console.print(comparison_table(comparison))
    for note in comparison_notes(comparison):
        console.print(note, highlight=False, soft_wrap=True)
    if out is not None:
        console.print(f"report: {out / 'comparison.html'}", highlight=False, soft_wrap=True)
