"""The command `ih-grpo eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from service.cli.output import abort

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_console = Console(stderr=True)


@app.command()
def evaluate(
    benchmarks: Annotated[
        list[Path], typer.Argument(help="Parquet or jsonl files of problems, or quickstart-held-out:200.")
    ],
    model: Annotated[str, typer.Option(help="Checkpoint or hub id; with --url, the model's name there.")],
    out: Annotated[Path, typer.Option(help="Directory for attempts and report; started again, it goes on.")],
    url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server, with or without /v1. Default: play here.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="For --url.", envvar="IHGRPO_API_KEY")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="For --url: text before each problem. Our own server needs none.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples a problem. Default: the paper's, 32 or 8 by benchmark.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many problems of each benchmark.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Default: 1.0.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: 0.7.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="For --url: tokens an episode may write.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    max_concurrent_episodes: Annotated[int | None, typer.Option(help="Default: 64.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    engine_slots: Annotated[int | None, typer.Option(help="Sequences in one batch.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of one operator.")] = None,
    sandbox: Annotated[str | None, typer.Option(help="in-process, runner or process.")] = None,
    runner_address: Annotated[str | None, typer.Option(help="host:port or unix:/path.")] = None,
    runner_token_file: Annotated[Path | None, typer.Option(help="The secret shared with the runner.")] = None,
    sandbox_image: Annotated[str | None, typer.Option(help="Image of the containers (in-process).")] = None,
    max_containers: Annotated[int | None, typer.Option(help="Containers at once (in-process).")] = None,
) -> None:
    """Evaluate a checkpoint or a server on benchmarks: avg@k, pass@k, and how the tool was used.

    \b
      ih-grpo eval aime24.parquet math500.parquet --model checkpoints/quickstart --out runs/eval
      ih-grpo eval aime24.parquet --url http://127.0.0.1:8000/v1 --model quickstart --out runs/eval-served
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    from service.cli.output import explain
    from service.engines.base import EngineError
    from service.sandbox.base import SandboxError
    from trainer.data.problems import DataError
    from trainer.evaluation.backends import BackendError
    from trainer.evaluation.evaluate import EvalConfig
    from trainer.evaluation.results import ResultsError
    from trainer.evaluation.run import run_evaluation
    from trainer.training.run_files import DirectoryError

    try:
        run_evaluation(EvalConfig.model_validate(flags), _console)
    except ValidationError as error:
        abort(*explain(error))
    except KeyboardInterrupt:
        abort("interrupted; the same command goes on")
    except (
        ValueError, DataError, ResultsError, DirectoryError, BackendError, EngineError, SandboxError
    ) as error:  # fmt: skip
        abort(str(error))
    _console.print(f"report: {out / 'report.html'}", highlight=False, soft_wrap=True)
