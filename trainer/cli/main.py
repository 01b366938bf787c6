"""The commands ``ih-grpo train``, ``train warm-start`` and ``train quickstart-eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.cli.output import abort, sanitize
from trainer.cli.export import export

app = typer.Typer(
    name="train",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("export", short_help="Export a trained adapter for publication.")(export)
_console = Console(stderr=True)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe of the run: a TOML file, such as recipes/quickstart.toml.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a field of the recipe. Can be given several times."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the recipe and print a summary and the memory estimate."),
    ] = False,
    shards: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --dry-run: number of processes that share the model's weights (FSDP2)."
        ),
    ] = None,
) -> None:
    """Train a model with IH-GRPO. Rerun the same command to resume an interrupted run.

    A recipe names the model, the problems and the output directory, and sets the method and its parameters.
    Each step samples answers, scores them and updates the weights. Checkpoints in RUN_DIR/checkpoints can be
    served with `ih-grpo serve --model`; saved rollouts can be viewed with `ih-grpo show`.

    \b
    Examples:
      ih-grpo train --recipe recipes/quickstart.toml --dry-run
      ih-grpo train --recipe recipes/quickstart.toml
      ih-grpo train --recipe recipes/quickstart.toml --set method=grpo-delayed --set run_dir=runs/delayed
    """
    if ctx.invoked_subcommand is not None:
        return
    if recipe is None:
        abort("--recipe is missing: pass a TOML file, such as recipes/quickstart.toml")
    if shards is not None and not dry_run:
        abort("--shards needs --dry-run: `accelerate launch` sets the number of training processes")
    from service.engines.base import EngineError
    from service.engines.checkpoint import CheckpointError
    from service.sandbox.base import SandboxError
    from trainer.data.problems import DataError
    from trainer.training.config import load_config
    from trainer.training.hub_push import PushError
    from trainer.training.run_files import DirectoryError
    from trainer.weight_sync.senders import WeightSyncError

    try:
        config = load_config(recipe, overrides or ())
        if dry_run:
            from trainer.training.dry_run import describe_run

            describe_run(config, _console, shards=shards or 1)
        else:
            from trainer.training.run import train

            checkpoint = train(config, _console, recipe_name=recipe.stem)
            base = "" if config.lora is None else f" --base {config.model}"
            _console.print(
                f"checkpoint: {checkpoint}\nserve it with: ih-grpo serve --model {checkpoint}{base}",
                highlight=False,
                soft_wrap=True,
            )
    except PushError as error:
        abort(
            f"the run is finished, but {error}",
            f"to retry: ih-grpo runs push {config.run_dir} {config.push_to}",
        )
    except KeyboardInterrupt:
        abort("interrupted: rerun the same command to resume from the last checkpoint")
    except (
        ValueError, DataError, CheckpointError, DirectoryError, EngineError, SandboxError, WeightSyncError
    ) as error:  # fmt: skip
        abort(str(error))
    except OSError as error:
        abort(f"{error}: fix the cause and rerun the same command to resume from the last checkpoint")


@app.command(short_help="Find training problems that overlap with evaluation problems.")
def decontaminate(
    data: Annotated[
        list[str],
        typer.Argument(help="Training problems: files, folders or hub ids, as in a recipe's `data`."),
    ],
    against: Annotated[
        list[str],
        typer.Option(
            help="Evaluation problems: a file, folder, hub id or suite such as paper. May be repeated."
        ),
    ],
    ngram: Annotated[int, typer.Option(min=5, help="Words of an n-gram.")] = 13,
    min_share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Remove only problems that share this part of an evaluation problem's words."
        ),
    ] = 0.0,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the remaining rows that have an answer, in JSON Lines with all columns."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="File for the list of overlaps, in JSON.")] = None,
) -> None:
    """Find training problems that overlap with evaluation problems, by n-grams of words.

    A recipe does the same with `decontaminate = ["paper"]`.

    \b
    Examples:
      ih-grpo train decontaminate train.parquet --against aime24.parquet --against math500.parquet
      ih-grpo train decontaminate train.parquet --against paper --out clean.jsonl --report overlaps.json
    """
    from trainer.data.decontamination import find_overlaps, write_rows
    from trainer.data.problems import DataError
    from trainer.data.sources import load_benchmarks, load_source

    try:
        sets = [load_source(source, check_gold=False) for source in data]
        problems = [problem for loaded in sets for problem in loaded.problems]
        overlaps = find_overlaps(problems, load_benchmarks(against), ngram=ngram, min_share=min_share)
        if report is not None:
            report.write_text(overlaps.to_json(), encoding="utf-8")
        if out is not None:
            kept = (p.columns or p.row for p in problems if p.id not in overlaps.contaminated)
            write_rows(out, kept)
    except (DataError, OSError) as error:
        abort(str(error))
    Console().print(str(overlaps), highlight=False, soft_wrap=True)
    if without_answer := sum(loaded.without_answer for loaded in sets):
        Console().print(
            f"rows without an answer, left out: {without_answer}", highlight=False, soft_wrap=True
        )
    for overlap in sorted(overlaps.overlaps, key=lambda overlap: -overlap.share)[:5]:
        where = f"{overlap.problem_id} and {overlap.benchmark}, {overlap.benchmark_id}"
        Console().print(
            f"  {overlap.share:.0%} of the words: {where}: ...{sanitize(overlap.words)}...",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


@app.command("warm-start", short_help="Teach a checkpoint the protocol, or train a small one from scratch.")
def warm_start(
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint to train: directory or hub id. Default: a new small model."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Recipe: a TOML file. Default: recipes/warm-start.toml with --model, else "
            "recipes/quickstart-warm-start.toml."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output directory for the checkpoint. Rerun to resume. Default: the recipe's run_dir with "
            "--model, else runs/quickstart-warm-start."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Stop after this many steps. Without --model, the recipe's learning-rate schedule is kept, "
            "which gives a weaker model."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: the number of cores.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --model: override a field. Repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print a summary and two training texts, and exit.")
    ] = False,
) -> None:
    """Train a checkpoint on episodes of the deferred protocol, by supervised learning.

    With --model, trains a LoRA adapter or all weights of any checkpoint whose tokenizer has the execute
    marker, on generated problems with executed solutions, mixed with the checkpoint's own answers to ordinary
    requests. The recipe's fields are documented in trainer/warm_start/recipe.py.

    Without --model, trains a small Qwen3 model from scratch. It learns to copy numbers from a question into
    Python code, to delay blocks, to run them with the execute marker, to read the output, and to say what it
    can do when it cannot answer. Takes about 10 minutes on 2 idle cores. Needs no network.

    \b
    Examples:
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
    from trainer.quickstart.warm_start import describe, train_with_progress, with_overrides

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


@app.command("quickstart-eval", short_help="Evaluate a warm-started checkpoint.")
def quickstart_eval(
    model: Annotated[Path, typer.Option(help="Checkpoint directory.")] = Path("checkpoints/quickstart"),
    problems: Annotated[int, typer.Option(min=1, help="Number of held-out problems.")] = 320,
    seed: Annotated[int, typer.Option(help="Seed of the problems and the samples.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = 0.0,
    garbage: Annotated[
        bool,
        typer.Option(
            "--garbage",
            help="Replace the digits in all outputs with random ones, so that a model that reads them fails.",
        ),
    ] = False,
    family: Annotated[
        list[str] | None, typer.Option(help="Use only this family of problems. Can be given several times.")
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            help="Ask the questions of this JSON Lines file instead; fields: question, answer, earlier."
        ),
    ] = None,
    failures: Annotated[int, typer.Option(help="Print the text of up to this many failures.")] = 0,
    sandbox_image: Annotated[
        str, typer.Option(help="Image of the sandbox containers.")
    ] = "ih-grpo-sandbox:latest",
    concurrency: Annotated[int, typer.Option(min=1, help="Number of concurrent episodes.")] = 8,
) -> None:
    """Evaluate a warm-started checkpoint on held-out problems, with code in Docker containers.

    With --questions, ask the questions of a file instead. For a question without an answer, the model is
    expected to say that it can only do arithmetic.

    Needs Docker and the sandbox image; build the image with `ih-grpo sandbox build`.

    \b
    Examples:
      ih-grpo train quickstart-eval
      ih-grpo train quickstart-eval --model runs/quickstart-warm-start --problems 50 --failures 3
    """
    import asyncio

    from service.engines.base import EngineError
    from service.engines.model_lookup import locate
    from service.sandbox.base import SandboxError
    from service.sandbox.factory import SandboxOptions, create_sandbox, instance_name
    from trainer.quickstart.evaluate import (
        GarbageSandbox,
        ProblemResult,
        QuestionResult,
        ask,
        evaluate,
        load_questions,
        print_problem_results,
        print_question_results,
    )
    from trainer.quickstart.problems import FAMILIES
    from trainer.quickstart.traces import held_out_problems

    if unknown := set(family or ()) - FAMILIES.keys():
        abort(f"--family: unknown family {sorted(unknown)[0]!r}; known families: {', '.join(FAMILIES)}")
    try:
        model = locate(str(model))
    except ValueError as error:
        abort(str(error))
    sandbox = create_sandbox(
        SandboxOptions(
            kind="in-process",
            image=sandbox_image,
            reuse=True,  # all episodes belong to one evaluation
            instance=instance_name("quickstart-eval"),
            pool_size=min(4, concurrency),
            max_containers=2 * concurrency,
        )
    )
    finished: list[ProblemResult | QuestionResult] = []
    try:
        asked = load_questions(questions) if questions else []
        drawn = [] if questions else list(held_out_problems(seed, problems, tuple(family or ())))
        with _console.status("starting") as status:

            def show(result: ProblemResult | QuestionResult) -> None:
                finished.append(result)
                correct = sum(one.is_correct for one in finished)
                status.update(f"{len(finished)} of {len(asked or drawn)} finished, {correct} correct")

            used = GarbageSandbox(sandbox) if garbage else sandbox
            if asked:
                question_results = asyncio.run(
                    ask(
                        model,
                        asked,
                        used,
                        temperature=temperature,
                        seed=seed,
                        concurrency=concurrency,
                        on_result=show,
                    )
                )
            else:
                problem_results = asyncio.run(
                    evaluate(
                        model,
                        drawn,
                        used,
                        temperature=temperature,
                        seed=seed,
                        concurrency=concurrency,
                        on_result=show,
                    )
                )
    except (EngineError, SandboxError, OSError, ValueError) as error:
        abort(str(error))
    if asked:
        print_question_results(question_results, Console(), failures=failures)
    else:
        print_problem_results(problem_results, Console(), failures=failures)
