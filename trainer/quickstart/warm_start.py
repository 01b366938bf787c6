"""The training loop: from a recipe to a checkpoint that can be served."""

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
class Report:
    """Where a run stands after a step."""

    step: int
    loss: float
    tokens: int
    """Tokens trained on in this process, padding included."""
    seconds: float
    """Wall-clock seconds of this process."""
    cpu_seconds: float
    number_accuracy: float | None
    """Share of held-out number tokens predicted right; None where it was not measured."""
    trace_accuracy: float | None
    """Share of held-out traces with all numbers right."""


class Listener(Protocol):
    def __call__(self, report: Report) -> None: ...


def trace_text(trace: Trace, prompt: str) -> str:
    problem = trace.problem
    turns = [
        problem.system,
        *(text for turn in problem.earlier for text in turn),
        instruct(problem.text, prompt),
    ]
    return "\n".join([*turns, *(segment.text for segment in trace.segments)])


def make_tokenizer(config: WarmStartConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of the checkpoint that the recipe goes on from, or one trained on its first traces."""
    if config.model is not None:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(config.model)
        return tokenizer
    policy = config.policy
    traces = (training_trace(config.seed, i, config.style, policy.marker) for i in range(TOKENIZER_TRACES))
    return build_tokenizer((trace_text(trace, policy.prompt) for trace in traces), words=config.words)


def warm_start(config: WarmStartConfig, out: Path, listen: Listener) -> None:
    """Train and write the checkpoint to ``out``. A run that was cut off goes on from its last state.

    Raises:
        RecipeError: ``out`` holds the state of a run with another recipe, or can't be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--out: {out} can't be made ({error.strerror}): name another directory") from None
    workers = Workers(config.threads or os.cpu_count() or 1)
    tokenizer = make_tokenizer(config)
    model = build_model(config, tokenizer)
    optimizers = _Optimizers(model, config)
    measured = _measured(config, tokenizer)
    numbers = torch.tensor(number_pieces(tokenizer))
    state = out / _STATE_FILE
    first = _restore(state, config, model, optimizers)
    stream = _stream(config, tokenizer, first)
    began, cpu_began, tokens = time.perf_counter(), time.process_time(), 0
    for step in range(first, config.steps):
        step_batches = [next(stream) for _ in range(config.batches_per_step)]
        loss = workers.backward(model, step_batches)
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
            Report(
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
    """Write what a server needs. The weights come last and whole: without them there is no checkpoint."""
    tokenizer.save_pretrained(out)
    config.policy.save(out)
    staging = out / ".weights"
    model.save_pretrained(staging)  # type: ignore[operator]
    for file in sorted(staging.iterdir(), key=lambda file: file.suffix == ".safetensors"):
        file.chmod(0o644)
        file.replace(out / file.name)
    staging.rmdir()


def _stream(config: WarmStartConfig, tokenizer: PreTrainedTokenizerFast, first: int) -> Iterator[Batch]:
    """Batches from step ``first`` on: the drill, then traces."""
    each = config.batches_per_step
    for number in range(first * each, config.drill_steps * each):
        yield drill_batch(tokenizer, seed=config.seed, step=number, steps=config.drill_steps * each)
    yield from batches(
        tokenizer,
        seed=config.seed,
        style=config.style,
        policy=config.policy,
        tokens=config.batch_tokens,
        start=max(first - config.drill_steps, 0) * each,
    )


def _measured(
    config: WarmStartConfig, tokenizer: PreTrainedTokenizerFast
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    policy, style = config.policy, replace(config.style, detour_share=0, slip_share=0)
    rng = Random(f"measured {config.seed}")
    examples = []
    for _ in range(MEASURED_PROBLEMS):
        problem = training_problem(rng, style, policy.marker, held_out=True)
        trace = write_trace(problem, rng, style, policy.marker)
        examples.append(encode_trace(trace, tokenizer, policy.prompt))
    return [
        collate(group, tokenizer.pad_token_id, rows=config.batch_tokens // length, length=length)
        for length, group in grouped(examples, config.batch_tokens)
    ]


class Workers:
    """Threads that each take one batch of a step.

    One thread a batch, with kernels of one thread, is faster than kernels of several threads: these wait for
    one another after every operation, and long if the machine does other work.
    """

    def __init__(self, count: int) -> None:
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def backward(self, model: Qwen3ForCausalLM, batches: Sequence[Batch]) -> float:
        """Set the gradients of the mean loss over the learned tokens of all batches, and return that loss."""
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
    """Muon for the matrices of the layers, AdamW for embeddings and norms, which have no weight decay."""

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
    """Steps that are done already."""
    if not path.is_file():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["recipe"] != config.model_dump_json():
        raise RecipeError(f"{path} belongs to a run with another recipe: remove it, or give another --out")
    model.load_state_dict(state["model"])
    optimizers.load(state["optimizers"])
    return int(state["step"])
