"""The warm start: from a recipe to a checkpoint that can be served."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from service.deferral.prompt import instruct
from trainer.quickstart.config import RecipeError, WarmStartConfig
from trainer.quickstart.data import (
    IGNORED,
    batches,
    collate,
    drill_batch,
    encode_trace,
    grouped,
    number_pieces,
)
from trainer.quickstart.draws import training_problem, training_trace
from trainer.quickstart.model import build_model, copy_accuracy, next_token_loss
from trainer.quickstart.tokenizer import build_tokenizer
from trainer.quickstart.traces import Trace, write_trace

TOKENIZER_TRACES = 4000
MEASURED_PROBLEMS = 128
_STATE_FILE = "training_state.pt"

Batch = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels, int64 [rows, time]."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """Progress of a run after a step."""

    step: int
    loss: float
    tokens: int
    """Tokens trained on in this process, padding included."""
    seconds: float
    """Wall-clock seconds of this process."""
    cpu_seconds: float
    number_accuracy: float | None
    """Share of held-out number tokens predicted correctly; None if not measured at this step."""
    trace_accuracy: float | None
    """Share of held-out traces with all numbers correct; None if not measured at this step."""


class StepListener(Protocol):
    """Callback after every step."""

    def __call__(self, report: StepReport) -> None: ...


def trace_text(trace: Trace, prompt: str) -> str:
    problem = trace.problem
    turns = [
        problem.system,
        *(text for turn in problem.earlier for text in turn),
        instruct(problem.text, prompt),
    ]
    return "\n".join([*turns, *(segment.text for segment in trace.segments)])


def make_tokenizer(config: WarmStartConfig) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the recipe's checkpoint, or one trained on the recipe's first traces."""
    if config.model is not None:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(config.model)
        return tokenizer
    policy = config.policy
    traces = (
        training_trace(config.seed, i, config.trace_mix, policy.marker) for i in range(TOKENIZER_TRACES)
    )
    return build_tokenizer((trace_text(trace, policy.prompt) for trace in traces), words=config.words)


def warm_start(config: WarmStartConfig, out: Path, listen: StepListener) -> None:
    """Train and write the checkpoint to ``out``. An interrupted run resumes from its last saved state.

    Raises:
        RecipeError: ``out`` contains the state of a run with another recipe, or is not writable.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(
            f"--out: cannot create {out} ({error.strerror}): choose another directory"
        ) from None
    threads = BatchThreads(config.threads or os.cpu_count() or 1)
    tokenizer = make_tokenizer(config)
    model = build_model(config, tokenizer)
    optimizers = _Optimizers(model, config)
    measured = _held_out_batches(config, tokenizer)
    numbers = torch.tensor(number_pieces(tokenizer))
    state = out / _STATE_FILE
    first = _restore(state, config, model, optimizers)
    stream = _step_batches(config, tokenizer, first)
    began, cpu_began, tokens = time.perf_counter(), time.process_time(), 0
    for step in range(first, config.steps):
        step_batches = [next(stream) for _ in range(config.batches_per_step)]
        loss = threads.backward(model, step_batches)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizers.step(config.learning_rate_at(step))
        tokens += sum(ids.numel() for ids, _ in step_batches)
        done = step + 1
        accuracy: tuple[float | None, float | None] = (None, None)
        if done % config.measure_every == 0 or done == config.steps:
            accuracy = copy_accuracy(model, measured, numbers)
        if done % config.save_every == 0 and done < config.steps:
            _save_state(state, config, model, optimizers, done)
        listen(
            StepReport(
                step=done,
                loss=loss,
                tokens=tokens,
                seconds=time.perf_counter() - began,
                cpu_seconds=time.process_time() - cpu_began,
                number_accuracy=accuracy[0],
                trace_accuracy=accuracy[1],
            )
        )
    save_checkpoint(out, config, model, tokenizer)
    state.unlink(missing_ok=True)


def save_checkpoint(
    out: Path, config: WarmStartConfig, model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write the files that a server needs. The weights come last and atomically, so no checkpoint is
    partial."""
    tokenizer.save_pretrained(out)
    config.policy.save(out)
    staging = out / ".weights"
    model.save_pretrained(staging)  # type: ignore[operator]
    for file in sorted(staging.iterdir(), key=lambda file: file.suffix == ".safetensors"):
        file.chmod(0o644)
        file.replace(out / file.name)
    staging.rmdir()


def _step_batches(config: WarmStartConfig, tokenizer: PreTrainedTokenizerFast, first: int) -> Iterator[Batch]:
    """Yield batches from step ``first`` on: first the drill, then traces."""
    each = config.batches_per_step
    for number in range(first * each, config.drill_steps * each):
        yield drill_batch(tokenizer, seed=config.seed, step=number, steps=config.drill_steps * each)
    yield from batches(
        tokenizer,
        seed=config.seed,
        mix=config.trace_mix,
        policy=config.policy,
        tokens=config.batch_tokens,
        start=max(first - config.drill_steps, 0) * each,
    )


def _held_out_batches(
    config: WarmStartConfig, tokenizer: PreTrainedTokenizerFast
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    policy, mix = config.policy, replace(config.trace_mix, detour_share=0, slip_share=0)
    rng = Random(f"measured {config.seed}")
    examples = []
    for _ in range(MEASURED_PROBLEMS):
        problem = training_problem(rng, mix, policy.marker, held_out=True)
        trace = write_trace(problem, rng, mix, policy.marker)
        examples.append(encode_trace(trace, tokenizer, policy.prompt))
    return [
        collate(group, tokenizer.pad_token_id, rows=config.batch_tokens // length, length=length)
        for length, group in grouped(examples, config.batch_tokens)
    ]


class BatchThreads:
    """Thread pool in which each thread processes one batch of a step.

    One thread per batch with single-threaded kernels is faster than multi-threaded kernels, whose threads
    wait for each other after every operation, especially on a busy machine.
    """

    def __init__(self, count: int) -> None:
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def backward(self, model: Qwen3ForCausalLM, batches: Sequence[Batch]) -> float:
        """Set the gradients of the mean loss over the learned tokens of all batches; return the loss."""
        parameters = list(model.parameters())
        counts = [int((labels[:, 1:] != IGNORED).sum()) for _, labels in batches]

        def one(batch: Batch, count: int) -> tuple[float, tuple[torch.Tensor, ...]]:
            loss = next_token_loss(model, *batch) * (count / sum(counts))
            return loss.item(), torch.autograd.grad(loss, parameters)

        done = list(self._pool.map(one, batches, counts))
        for parameter, *gradients in zip(parameters, *(gradients for _, gradients in done), strict=True):
            parameter.grad = torch.stack(gradients).sum(0)
        return sum(loss for loss, _ in done)


class _Optimizers:
    """Muon for the matrices of the layers; AdamW without weight decay for embeddings and norms."""

    def __init__(self, model: Qwen3ForCausalLM, config: WarmStartConfig) -> None:
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self._all = (
            torch.optim.Muon(
                matrices,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def step(self, learning_rate: float) -> None:
        """Update the weights and clear the gradients."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad()

    def state(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self._all]

    def load(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)


def _save_state(
    path: Path, config: WarmStartConfig, model: torch.nn.Module, optimizers: _Optimizers, step: int
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "recipe": config.model_dump_json(),
        "step": step,
        "model": model.state_dict(),
        "optimizers": optimizers.state(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _restore(path: Path, config: WarmStartConfig, model: torch.nn.Module, optimizers: _Optimizers) -> int:
    """Load the saved state if there is one; return the number of finished steps."""
    if not path.is_file():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["recipe"] != config.model_dump_json():
        raise RecipeError(f"{path} belongs to a run with another recipe: remove it, or use another --out")
    model.load_state_dict(state["model"])
    optimizers.load(state["optimizers"])
    return int(state["step"])


def with_overrides(recipe: Path, *, steps: int | None, threads: int | None) -> WarmStartConfig:
    """Load a recipe and apply the command line's options. Fewer steps keep the recipe's learning rates.

    Raises:
        RecipeError: the recipe is invalid.
    """
    config = WarmStartConfig.load(recipe)
    if steps is not None:
        config = config.model_copy(
            update={"steps": steps, "learning_steps": config.learning_steps or config.steps}
        )
    return config if threads is None else config.model_copy(update={"threads": threads})


def describe(config: WarmStartConfig, out: Path, console: Console) -> None:
    """Print a summary of the run and two of its traces."""
    tokenizer = make_tokenizer(config)
    model = build_model(config, tokenizer)
    traces = [training_trace(config.seed, i, config.trace_mix, config.policy.marker) for i in range(200)]
    examples = [encode_trace(trace, tokenizer, config.policy.prompt) for trace in traces]
    lengths = [len(example.ids) for example in examples]
    parameters = model.num_parameters()
    console.print(
        f"{parameters:,} parameters ({parameters * 4 / 1e6:.1f} MB), vocabulary {len(tokenizer)}\n"
        f"{config.steps} steps of {config.batches_per_step} x {config.batch_tokens} tokens, "
        f"{config.drill_steps} of them a copying drill\n"
        f"trace tokens: {sum(lengths) / len(lengths):.0f} on average, maximum {max(lengths)} (200 traces)\n"
        f"output: {out}",
        highlight=False,
    )
    for trace, example in zip(traces[:2], examples, strict=False):
        console.rule(trace.problem.family)
        console.print(tokenizer.decode(example.ids), markup=False, highlight=False)


def train_with_progress(config: WarmStartConfig, out: Path, console: Console) -> None:
    """Train with a progress bar, and print a line for each measurement."""
    columns = (
        TextColumn("warm start"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tok/s  left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=config.steps, loss=float("nan"), speed=0.0)

        def listen(report: StepReport) -> None:
            progress.update(
                bar, completed=report.step, loss=report.loss, speed=report.tokens / report.seconds
            )
            if report.number_accuracy is not None:
                progress.console.print(_measurement_line(report), highlight=False, soft_wrap=True)

        warm_start(config, out, listen)
    console.print(
        f"checkpoint: {out}\nserve it with: ih-grpo serve --model {out}", highlight=False, soft_wrap=True
    )


def _measurement_line(report: StepReport) -> str:
    return (
        f"step {report.step}  loss {report.loss:.4f}  "
        f"held-out number tokens correct {report.number_accuracy:.4f}, "
        f"whole traces {report.trace_accuracy:.3f}  "
        f"{report.tokens / 1e6:.2f}M tokens in {report.seconds:.0f} s "
        f"({report.cpu_seconds:.0f} CPU s)"
    )
