"""The training loop: from a recipe to a checkpoint that can be served."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from service.deferral.prompt import instruct
from trainer.quickstart.config import RecipeError, WarmStartConfig
from trainer.quickstart.data import IGNORED, batches, collate, encode_trace
from trainer.quickstart.draws import training_trace
from trainer.quickstart.drill import drill_batch, number_pieces
from trainer.quickstart.model import build_model, copy_accuracy, next_token_logits
from trainer.quickstart.tokenizer import build_tokenizer
from trainer.quickstart.traces import Style, Trace, held_out_problems, write_trace

TOKENIZER_TRACES = 4000
MEASURED_PROBLEMS = 128
_STATE_FILE = "training_state.pt"


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
    return "\n".join([instruct(trace.problem.text, prompt), *(segment.text for segment in trace.segments)])


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
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tokenizer = make_tokenizer(config)
    model = build_model(config, tokenizer)
    optimizer = _optimizer(model, config)
    measured = _measured(config, tokenizer)
    numbers = torch.tensor(number_pieces(tokenizer))
    state = out / _STATE_FILE
    first = _restore(state, config, model, optimizer)
    stream = _stream(config, tokenizer, first)
    began, cpu_began, tokens = time.perf_counter(), time.process_time(), 0
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        ids, labels = next(stream)
        logits = next_token_logits(model, ids)
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        tokens += ids.numel()
        done = step + 1
        accuracy: tuple[float | None, float | None] = (None, None)
        if done % config.measure_every == 0 or done == config.steps:
            accuracy = copy_accuracy(model, measured, numbers)
        if done % config.save_every == 0 and done < config.steps:
            _save_state(state, config, model, optimizer, done)
        listen(
            Report(
                step=done,
                loss=loss.item(),
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


def _stream(
    config: WarmStartConfig, tokenizer: PreTrainedTokenizerFast, first: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches from step ``first`` on: the drill, then traces."""
    for step in range(first, config.drill_steps):
        yield drill_batch(tokenizer, seed=config.seed, step=step, steps=config.drill_steps)
    yield from batches(
        tokenizer,
        seed=config.seed,
        style=config.style,
        policy=config.policy,
        size=config.batch_size,
        start=max(first - config.drill_steps, 0),
    )


def _measured(
    config: WarmStartConfig, tokenizer: PreTrainedTokenizerFast
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    policy = config.policy
    rng = Random(config.seed)  # noqa: S311
    examples = [
        encode_trace(
            write_trace(problem, rng, Style(detour_share=0), policy.marker), tokenizer, policy.prompt
        )
        for problem in held_out_problems(config.seed, MEASURED_PROBLEMS)
    ]
    examples.sort(key=lambda example: len(example.ids))
    size = config.batch_size
    return [collate(examples[i : i + size], tokenizer.pad_token_id) for i in range(0, len(examples), size)]


def _optimizer(model: torch.nn.Module, config: WarmStartConfig) -> torch.optim.AdamW:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))


def _save_state(
    path: Path, config: WarmStartConfig, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "recipe": config.model_dump_json(),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _restore(
    path: Path, config: WarmStartConfig, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Steps that are done already."""
    if not path.is_file():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["recipe"] != config.model_dump_json():
        raise RecipeError(f"{path} belongs to a run with another recipe: remove it, or give another --out")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
