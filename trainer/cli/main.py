"""The commands under `ih-grpo train`."""

from __future__ import annotations

import json
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
            base = "" if config.lora is None else f" --base {config.model}"
            _console.print(f"done: ih-grpo serve --model {checkpoint}{base}", highlight=False, soft_wrap=True)
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
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint to teach: directory or hub id. Default: a new small model."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="TOML file. Default: recipes/warm-start.toml with --model, else "
            "recipes/quickstart-warm-start.toml."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output directory. Rerun to resume. Default: the recipe's run_dir with --model, else "
            "runs/quickstart-warm-start."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Steps. Without --model the recipe's schedule of the learning rate is kept."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: all cores.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a field, with --model; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and two texts, train nothing.")
    ] = False,
) -> None:
    """Teach a checkpoint the deferred protocol by supervised training.

    With --model: any checkpoint whose tokenizer has the execute marker, by a LoRA adapter or all weights, on
    solved problems mixed with the checkpoint's own answers to ordinary requests. Fields of the recipe are
    documented in trainer/warm_start/recipe.py.

    Without --model: a small Qwen3 from nothing. It learns to copy numbers from a question into Python, to
    delay blocks, to run them with the execute marker, to read the output, and to say what it is if it can't
    answer. Takes about 10 minutes on 2 idle cores, and no network.

    \b
      ih-grpo train warm-start --model Qwen/Qwen2.5-Coder-0.5B-Instruct --out runs/warm-start
      ih-grpo train warm-start
      ih-grpo train quickstart-eval --model runs/quickstart-warm-start
      ih-grpo serve --model runs/quickstart-warm-start
    """
    if model is not None:
        _warm_start_checkpoint(
            model, recipe or Path("recipes/warm-start.toml"), out, steps, threads, overrides or [], dry_run
        )
        return
    if overrides:
        abort("--set needs --model: edit the recipe instead")
    recipe = recipe or Path("recipes/quickstart-warm-start.toml")
    out = out or Path("runs/quickstart-warm-start")
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


def _warm_start_checkpoint(
    model: str,
    recipe: Path,
    out: Path | None,
    steps: int | None,
    threads: int | None,
    overrides: list[str],
    dry_run: bool,
) -> None:
    from service.engines.base import EngineError
    from service.engines.checkpoint import CheckpointError
    from trainer.training.run_files import DirectoryError
    from trainer.warm_start.recipe import load_warm_start
    from trainer.warm_start.run import describe_warm_start, run_warm_start

    values = {"model": model, "run_dir": out, "steps": steps, "threads": threads}
    given = [f"{name}={json.dumps(str(v)) if isinstance(v, Path | str) else v}"
             for name, v in values.items() if v is not None]  # fmt: skip
    try:
        settings = load_warm_start(recipe, [*overrides, *given])
        if dry_run:
            describe_warm_start(settings, _console)
            return
        checkpoint = run_warm_start(settings, _console)
        base = f" --base {settings.model}" if settings.weights == "lora" else ""
        _console.print(f"done: ih-grpo serve --model {checkpoint}{base}", highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        abort("interrupted. Rerun the command to resume from the last checkpoint")
    except (ValueError, CheckpointError, DirectoryError, EngineError) as error:
        abort(str(error))
    except OSError as error:
        abort(f"{error}. Rerun the command to resume from the last checkpoint")


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
