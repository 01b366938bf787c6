"""The commands under `ih-grpo train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.cli.output import abort

app = typer.Typer(
    name="train",
    help="Train models to defer their code, and start small ones from nothing.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_console = Console(stderr=True)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    recipe: Annotated[Path | None, typer.Option(help="TOML file of the run.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen and what memory it needs.")
    ] = False,
    shards: Annotated[
        int, typer.Option(min=1, help="With --dry-run: processes that share the model under FSDP2.")
    ] = 1,
) -> None:
    """Train a checkpoint with IH-GRPO. A run that was cut off goes on from its last checkpoint.

    \b
      ih-grpo train --recipe recipes/quickstart.toml
      ih-grpo train --recipe recipes/quickstart.toml --set method=grpo-delayed --set run_dir=runs/delayed
    """
    if ctx.invoked_subcommand is not None:
        return
    if recipe is None:
        abort("--recipe is missing: give a TOML file, such as recipes/quickstart.toml")
    from service.engines.base import EngineError
    from service.engines.checkpoint import CheckpointError
    from service.sandbox.base import SandboxError
    from trainer.data.problems import DataError
    from trainer.training.config import load_config
    from trainer.training.run_files import DirectoryError
    from trainer.weight_sync.senders import WeightSyncError

    try:
        config = load_config(recipe, overrides or ())
        if dry_run:
            from trainer.training.dry_run import describe_run

            describe_run(config, _console, shards=shards)
        else:
            from trainer.training.run import train

            checkpoint = train(config, _console)
            _console.print(f"done: ih-grpo serve --model {checkpoint}", highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        abort("interrupted; the same command goes on from the last checkpoint")
    except (
        ValueError, DataError, CheckpointError, DirectoryError, EngineError, SandboxError, WeightSyncError
    ) as error:  # fmt: skip
        abort(str(error))
    except OSError as error:
        abort(f"{error}; once that is mended, the same command goes on from the last checkpoint")


@app.command("warm-start")
def warm_start(
    recipe: Annotated[Path, typer.Option(help="TOML file; every field has a default.")] = Path(
        "recipes/quickstart-warm-start.toml"
    ),
    out: Annotated[
        Path, typer.Option(help="Directory for the checkpoint. A run that was cut off there goes on.")
    ] = Path("runs/quickstart-warm-start"),
    steps: Annotated[
        int | None, typer.Option(help="Stop after so many steps, on the recipe's schedule: a weaker model.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: all cores.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and two traces, train nothing.")
    ] = False,
) -> None:
    """Train a small Qwen3 from nothing on written-down episodes of the deferred protocol.

    The model learns to copy numbers from a question into Python, to delay blocks, to run them with the
    execute marker, to read what comes back, and to say what it is if it can't answer. Takes about 10 minutes
    on 2 idle cores, and no network.

    \b
      ih-grpo train warm-start
      ih-grpo train quickstart-eval --model runs/quickstart-warm-start
      ih-grpo serve --model runs/quickstart-warm-start
    """
    from trainer.quickstart.config import RecipeError
    from trainer.quickstart.progress import describe, train_with_progress, with_overrides

    try:
        config = with_overrides(recipe, steps=steps, threads=threads)
        if dry_run:
            describe(config, out, _console)
        else:
            train_with_progress(config, out, _console)
    except RecipeError as error:
        abort(str(error))


@app.command("quickstart-eval")
def quickstart_eval(
    model: Annotated[Path, typer.Option(help="Checkpoint directory.")] = Path("checkpoints/quickstart"),
    problems: Annotated[int, typer.Option(min=1, help="How many held-out problems.")] = 320,
    seed: Annotated[int, typer.Option(help="Draws the problems and the samples.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    garbage: Annotated[
        bool, typer.Option("--garbage", help="Replace the digits of all output by random ones.")
    ] = False,
    family: Annotated[list[str] | None, typer.Option(help="Only this family; may be repeated.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="JSON Lines with question, answer, earlier: ask these instead.")
    ] = None,
    failures: Annotated[int, typer.Option(help="Show the text of so many failures.")] = 0,
    sandbox_image: Annotated[str, typer.Option(help="Image of the containers.")] = "ih-grpo-sandbox:latest",
    concurrency: Annotated[int, typer.Option(min=1, help="Episodes, and containers, at once.")] = 8,
) -> None:
    """Measure a warm-started checkpoint on problems that it never saw, in real containers.

    With --questions, ask the questions of a file instead. A row without an answer expects the honest reply.

    Needs Docker and the sandbox image: `ih-grpo sandbox build` builds it.
    """
    import asyncio

    from service.engines.base import EngineError
    from service.engines.checkpoint import locate
    from service.sandbox.base import SandboxError
    from service.sandbox.factory import SandboxOptions, create_sandbox, instance_name
    from trainer.quickstart.evaluate import (
        GarbageSandbox,
        Reply,
        Verdict,
        ask,
        evaluate,
        load_questions,
        print_replies,
        print_verdicts,
    )
    from trainer.quickstart.problems import FAMILIES
    from trainer.quickstart.traces import held_out_problems

    if unknown := set(family or ()) - FAMILIES.keys():
        abort(f"--family: there is no {sorted(unknown)[0]!r}; known are {', '.join(FAMILIES)}")
    try:
        model = locate(str(model))
    except ValueError as error:
        abort(str(error))
    sandbox = create_sandbox(
        SandboxOptions(
            kind="in-process",
            image=sandbox_image,
            instance=instance_name("quickstart-eval"),
            pool_size=min(4, concurrency),
            max_containers=2 * concurrency,
        )
    )
    played: list[Verdict | Reply] = []
    try:
        asked = load_questions(questions) if questions else []
        drawn = [] if questions else list(held_out_problems(seed, problems, tuple(family or ())))
        with _console.status("starting") as status:

            def listen(result: Verdict | Reply) -> None:
                played.append(result)
                solved = sum(one.right if isinstance(one, Reply) else one.solved for one in played)
                status.update(f"{len(played)} of {len(asked or drawn)} played, {solved} solved")

            used = GarbageSandbox(sandbox) if garbage else sandbox
            if asked:
                replies = asyncio.run(
                    ask(
                        model,
                        asked,
                        used,
                        temperature=temperature,
                        seed=seed,
                        concurrency=concurrency,
                        listen=listen,
                    )
                )
            else:
                verdicts = asyncio.run(
                    evaluate(
                        model,
                        drawn,
                        used,
                        temperature=temperature,
                        seed=seed,
                        concurrency=concurrency,
                        listen=listen,
                    )
                )
    except (EngineError, SandboxError, OSError, ValueError) as error:
        abort(str(error))
    if asked:
        print_replies(replies, Console(), failures=failures)
    else:
        print_verdicts(verdicts, Console(), failures=failures)
