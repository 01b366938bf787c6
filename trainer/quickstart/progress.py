"""What one sees of a warm start in a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.quickstart.config import WarmStartConfig
from trainer.quickstart.data import encode_trace
from trainer.quickstart.draws import training_trace
from trainer.quickstart.model import build_model
from trainer.quickstart.warm_start import Report, make_tokenizer, warm_start


def with_overrides(recipe: Path, *, steps: int | None, threads: int | None) -> WarmStartConfig:
    """The recipe with the command line's say. Fewer steps keep the recipe's learning rates.

    Raises:
        RecipeError: the recipe can't be used.
    """
    config = WarmStartConfig.load(recipe)
    if steps is not None:
        config = config.model_copy(
            update={"steps": steps, "learning_steps": config.learning_steps or config.steps}
        )
    return config if threads is None else config.model_copy(update={"threads": threads})


def describe(config: WarmStartConfig, out: Path, console: Console) -> None:
    """Say what a run would do."""
    tokenizer = make_tokenizer(config)
    model = build_model(config, tokenizer)
    traces = [training_trace(config.seed, i, config.style, config.policy.marker) for i in range(200)]
    examples = [encode_trace(trace, tokenizer, config.policy.prompt) for trace in traces]
    lengths = [len(example.ids) for example in examples]
    parameters = model.num_parameters()
    console.print(
        f"{parameters:,} parameters ({parameters * 4 / 1e6:.1f} MB), vocabulary {len(tokenizer)}\n"
        f"{config.steps} steps of {config.batches_per_step} x {config.batch_tokens} tokens, "
        f"{config.drill_steps} of them a copying drill\n"
        f"a trace is {sum(lengths) / len(lengths):.0f} tokens, the longest of 200 is {max(lengths)}\n"
        f"the checkpoint goes to {out}",
        highlight=False,
    )
    for trace, example in zip(traces[:2], examples, strict=False):
        console.rule(trace.problem.family)
        console.print(tokenizer.decode(example.ids), markup=False, highlight=False)


def train_with_progress(config: WarmStartConfig, out: Path, console: Console) -> None:
    """Train, with a progress bar and a line for each measurement."""
    columns = (
        TextColumn("warm start"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tok/s  left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=config.steps, loss=float("nan"), speed=0.0)

        def listen(report: Report) -> None:
            progress.update(
                bar, completed=report.step, loss=report.loss, speed=report.tokens / report.seconds
            )
            if report.number_accuracy is not None:
                progress.console.print(_line(report), highlight=False, soft_wrap=True)

        warm_start(config, out, listen)
    console.print(f"the checkpoint is in {out}: ih-grpo serve --model {out}", highlight=False, soft_wrap=True)


def _line(report: Report) -> str:
    return (
        f"step {report.step}  loss {report.loss:.4f}  "
        f"held-out number tokens right {report.number_accuracy:.4f}, "
        f"whole traces {report.trace_accuracy:.3f}  "
        f"{report.tokens / 1e6:.2f}M tokens in {report.seconds:.0f} s "
        f"({report.cpu_seconds:.0f} CPU s)"
    )
