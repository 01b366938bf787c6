"""The commands ``ih-grpo runs``, ``runs compare`` and ``runs push``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from service.cli.output import abort, sanitize
from trainer.runs.records import RunsError, TrainingRun, find_runs, read_run


class _ListByDefault(TyperGroup):
    """A group whose arguments go to ``list`` if they do not start with the name of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:1] != ["--help"] and (not args or args[0] not in self.commands):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListByDefault,
    help="""List training runs, compare their curves, and upload a checkpoint.

    \b
    Examples:
      ih-grpo runs
      ih-grpo runs compare runs/quickstart runs/delayed --html comparison.html
      ih-grpo runs push runs/quickstart org/name
    """,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_console = Console(highlight=False)


@app.command("list")
def list_runs(
    directory: Annotated[
        Path, typer.Argument(help="Directory that contains runs, or the directory of one.")
    ] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per run.")] = False,
) -> None:
    """List training runs. The default command: `ih-grpo runs DIR` is the same as `ih-grpo runs list DIR`.

    Shows the recipe, the method, the step, the last reward, validation accuracy and delay rate, the best
    checkpoint, and whether the run is running, finished or stopped. To resume a stopped run, rerun its
    command.

    \b
    Examples:
      ih-grpo runs
      ih-grpo runs list runs/experiments --json
    """
    try:
        runs = find_runs(directory)
    except RunsError as error:
        abort(str(error))
    if as_json:
        for run in runs:
            typer.echo(json.dumps(_as_json(run)))
    elif runs:
        _console.print(_table(runs, directory))
    else:
        _console.print(f"no training runs in {directory}", highlight=False, soft_wrap=True)


@app.command(short_help="Compare the curves of runs.")
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Directories of the runs.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Metric to compare, as named in metrics.jsonl. Can be given several times. Default: reward, "
            "validation accuracy, delay rate, response tokens, entropy and throughput."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write the comparison to a self-contained HTML page.")
    ] = None,
) -> None:
    """Compare the curves of runs, and list the settings in which their recipes differ.

    \b
    Examples:
      ih-grpo runs compare runs/quickstart runs/delayed
      ih-grpo runs compare runs/a runs/b --metric reward --metric groups/zero_std --html comparison.html
    """
    from trainer.runs.compare import compare as compare_runs
    from trainer.runs.compare import print_comparison, render_html

    try:
        comparison = compare_runs([read_run(path) for path in runs], metric or ())
        print_comparison(comparison, _console)
        if html is not None:
            html.write_text(render_html(comparison), encoding="utf-8")
            _console.print(f"\nwritten: {html}", soft_wrap=True)
    except RunsError as error:
        abort(str(error))
    except OSError as error:
        abort(f"--html: cannot write to {html} ({error.strerror})")


@app.command(short_help="Upload a checkpoint of a run to the Hugging Face hub.")
def push(
    run: Annotated[Path, typer.Argument(help="Directory of the run.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hugging Face hub, such as org/name.")],
    step: Annotated[
        int | None, typer.Option(min=1, help="Step of the checkpoint. Default: the best one, else the last.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Create the repository as a public one, if it does not exist.")
    ] = False,
) -> None:
    """Upload a checkpoint of a run to the Hugging Face hub, with a model card.

    Needs a token with write access: `hf auth login` or HF_TOKEN. The option push_to of a recipe does the
    same at the end of the run.

    \b
    Examples:
      ih-grpo runs push runs/quickstart org/name
      ih-grpo runs push runs/quickstart org/name --step 20 --public
    """
    from pydantic import ValidationError

    from service.cli.output import explain
    from service.engines.checkpoint import CheckpointError, verify
    from trainer.training.config import TrainConfig
    from trainer.training.hub_push import PushError
    from trainer.training.hub_push import push as upload

    try:
        found = read_run(run)
        chosen = step or found.best or (found.checkpoints[-1] if found.checkpoints else None)
        if chosen is None:
            abort(f"{run} has no checkpoint yet")
        checkpoint = run / "checkpoints" / f"checkpoint-{chosen}"
        verify(checkpoint)
        config = TrainConfig.model_validate({**found.recipe, "push_to": repo, "push_private": not public})
        _console.print(f"uploaded {checkpoint} to {upload(checkpoint, config, repo)}", soft_wrap=True)
    except ValidationError as error:
        abort(*explain(error))
    except (RunsError, CheckpointError, PushError) as error:
        abort(str(error))


def _table(runs: list[TrainingRun], directory: Path) -> Table:
    # Fits 80 columns: no frame, two-line headings.
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("run", "recipe", "method"):
        table.add_column(column, overflow="fold")
    for column in ("step", "reward", "valid-\nation", "delay\nrate", "best"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for run in runs:
        table.add_row(
            sanitize(_relative(run.path, directory)),
            sanitize(run.recipe_name or "-"),
            sanitize(str(run.recipe.get("method", "-"))),
            f"{run.step}/{run.steps or '?'}",
            _number(run.latest("reward"), "{:.3f}"),
            _number(run.latest("eval_accuracy"), "{:.1%}"),
            _number(run.latest("delay_rate"), "{:.0%}"),
            "-" if run.best is None else str(run.best),
            run.state,
        )
    return table


def _relative(path: Path, directory: Path) -> str:
    return path.resolve().name if path == directory else str(path.relative_to(directory))


def _number(value: float | None, template: str) -> str:
    return "-" if value is None else template.format(value)


def _as_json(run: TrainingRun) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "recipe": run.recipe_name,
        "method": run.recipe.get("method"),
        "model": run.recipe.get("model"),
        "step": run.step,
        "steps": run.steps,
        "reward": run.latest("reward"),
        "eval_accuracy": run.latest("eval_accuracy"),
        "delay_rate": run.latest("delay_rate"),
        "best_checkpoint": run.best,
        "state": run.state,
        "started_at": run.started_at,
    }
