"""Training on one GPU: the loss head, and one optimizer step of LoRA and of all weights at several lengths.

    python benchmarks/gpu_training.py --out runs/gpu-training

Needs no network and no checkpoint: models have the shapes of Qwen2.5-0.5B and Qwen3-1.7B and random weights
(``--model-dir NAME=DIR`` uses a real one). For each model, method and length it

- pushes the trainer's weights into the embedded engine and lets it read prompts and sample,
- compares the engine's log-probabilities of the sampled tokens with the trainer's,
- takes one optimizer step with the real trainer on episodes of that length.

Results are written to ``OUT/results.json`` and ``OUT/results.md`` after every case, so that a run that is
cut off leaves what it measured. Cases that would start after ``--budget-s`` are listed as skipped. ``--tiny``
runs everything on the CPU with small sizes in a minute: a check of the script, not a measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, Qwen2Config, Qwen3Config
from transformers.utils import logging as transformers_logging

from benchmarks.head import MARKER, naive
from service.deferral.episode import Outcome
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.engines.checkpoint import quickstart
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from trainer.training.chunked_lm_head import HeadOutput, token_statistics
from trainer.training.config import TrainConfig
from trainer.training.episodes import Sample
from trainer.training.lora import attach_adapter
from trainer.training.loss import mismatch_metrics
from trainer.training.rollouts import BackgroundLoop, Means, RolloutBatch, Row
from trainer.training.trainer import IHGRPOTrainer

PROMPT_TOKENS = 256
"""Prompt of a training row; the rest of its length is trained on."""

SHAPES: Mapping[str, Any] = {
    "Qwen2.5-0.5B": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=32768, rope_theta=1e6,
        tie_word_embeddings=True,
    ),
    "Qwen3-1.7B": Qwen3Config(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
        rope_theta=1e6, tie_word_embeddings=True,
    ),
}  # fmt: skip
TINY_SHAPES: Mapping[str, Any] = {
    "tiny-Qwen2": Qwen2Config(
        vocab_size=2400, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    ),
    "tiny-Qwen3": Qwen3Config(
        vocab_size=2400, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, tie_word_embeddings=False,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the models and episodes that a run measures."""

    shapes: Mapping[str, Any]
    lengths: Sequence[int]
    samples: int
    sampled_tokens: int
    head: Sequence[tuple[int, int, int]]
    """(tokens, vocabulary, hidden) of the loss head."""


FULL = Sizes(SHAPES, (2048, 8192, 16384), 4, 64, ((8192, 151936, 896), (8192, 151936, 2048)))
TINY = Sizes(TINY_SHAPES, (384, 512), 2, 8, ((256, 2400, 64),))


@dataclass(slots=True)
class Results:
    """All rows so far, written after each."""

    out: Path
    machine: dict[str, str]
    head: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def write(self) -> None:
        values = {name: value for name, value in asdict(self).items() if name != "out"}
        (self.out / "results.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        parts = [", ".join(self.machine.values()), table(self.head), table(self.steps)]
        if self.skipped:
            parts.append("Skipped for lack of time: " + "; ".join(self.skipped))
        (self.out / "results.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    if not rows:
        return ""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Device:
    """Timing and memory of one device. Memory is None on a CPU."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_cuda = name.startswith("cuda")

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def reset(self) -> None:
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.is_cuda else None

    def seconds(self, work: Callable[[], object]) -> float:
        self.synchronize()
        began = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - began


def measure_head(device: Device, tokens: int, vocabulary: int, hidden_size: int) -> dict[str, Any]:
    """Time and peak memory of forward and backward, chunked and naive, in bfloat16; and their difference."""
    row: dict[str, Any] = {"tokens": tokens, "vocabulary": vocabulary, "hidden": hidden_size}
    outputs = {}
    for name in ("naive", "chunked"):
        generator = torch.Generator(device.name).manual_seed(0)
        options: dict[str, Any] = {"generator": generator, "device": device.name}
        hidden = torch.randn(tokens, hidden_size, **options).bfloat16().requires_grad_()
        weight = (torch.randn(vocabulary, hidden_size, **options) / hidden_size**0.5).bfloat16()
        weight.requires_grad_()
        ids = torch.randint(vocabulary, (tokens,), **options)
        device.reset()
        head = naive if name == "naive" else partial(token_statistics, marker_id=MARKER)
        work = partial(_head_pass, head, hidden, weight, ids)
        outputs[name] = work()
        row[f"{name}_ms"] = round(1000 * statistics.median(device.seconds(work) for _ in range(3)), 1)
        row[f"{name}_peak_GiB"] = device.peak_gib()
        del hidden, weight, work
        device.reset()
    row["largest_difference"] = float(f"{(outputs['naive'] - outputs['chunked']).abs().max():.2e}")
    return row


def _head_pass(head: Callable[..., HeadOutput], hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    hidden.grad = weight.grad = None
    output = head(hidden, weight, ids)
    (output.log_probs.mean() + output.execute_logits.mean()).backward()
    return output.log_probs.detach()


def make_checkpoint(directory: Path, shape: Any, device: str) -> Path:
    """Write a model of ``shape`` with random bfloat16 weights and the quickstart's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(quickstart())
    shape.eos_token_id, shape.pad_token_id, shape.bos_token_id = (
        tokenizer.eos_token_id, tokenizer.pad_token_id, None
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


class EngineRows:
    """A source of rows: pushes weights, samples with the engine, returns episodes of ``length`` tokens."""

    fingerprint = "benchmark"

    def __init__(self, engine: TransformersEngine, loop: BackgroundLoop, sizes: Sizes, length: int) -> None:
        self._engine, self._loop, self._sizes, self._length = engine, loop, sizes, length
        self._vocabulary = engine.tokenizer.vocab_size
        self.measured: dict[str, Any] = {}
        self.sampled: list[tuple[list[int], list[int], list[float]]] = []

    def collect(self, index: int, weights: Mapping[str, Tensor]) -> RolloutBatch:
        began = time.perf_counter()
        self._loop.run(self._engine.load_weights(weights))
        self.measured["push_s"] = round(time.perf_counter() - began, 2)
        self._loop.run(self._sample())
        generator = torch.Generator().manual_seed(index)
        rows = []
        for number in range(self._sizes.samples):
            ids = torch.randint(self._vocabulary, (self._length,), generator=generator).tolist()
            response = ids[PROMPT_TOKENS:]
            sample = Sample(
                tuple(ids[:PROMPT_TOKENS]), tuple(response), (1,) * len(response),
                (-10.0,) * len(response), "", Outcome.ANSWER, None, (), seconds=0.0, seed=number,
            )  # fmt: skip
            rows.append(Row(sample, 1.0 if number % 2 else -1.0))
        return RolloutBatch(rows, Means())

    async def _sample(self) -> None:
        generator = torch.Generator().manual_seed(1)
        count = self._sizes.sampled_tokens
        prompts = [
            torch.randint(self._vocabulary, (self._length - count,), generator=generator).tolist()
            for _ in range(self._sizes.samples)
        ]
        firsts: list[float] = []
        began = time.perf_counter()

        async def one(prompt: list[int], seed: int) -> tuple[list[int], list[float]]:
            ids: list[int] = []
            log_probs: list[float] = []
            async for chunk in self._engine.generate(prompt, Sampling(seed=seed, max_tokens=count)):
                if not ids:
                    firsts.append(time.perf_counter())
                ids += chunk.ids
                log_probs += chunk.logprobs
            return ids, log_probs

        found = await asyncio.gather(*(one(prompt, seed) for seed, prompt in enumerate(prompts)))
        ended = time.perf_counter()
        self.sampled = [(prompt, ids, logs) for prompt, (ids, logs) in zip(prompts, found, strict=True)]
        prefill = max(firsts) - began
        self.measured["prefill_tok_per_s"] = round(sum(map(len, prompts)) / prefill)
        decoded = sum(len(ids) for ids, _ in found) - len(found)
        self.measured["decode_tok_per_s"] = round(decoded / max(ended - max(firsts), 1e-9))


class StepTrainer(IHGRPOTrainer):
    """The trainer without checkpoints, measuring its step after the rollout."""

    device_under_test: Device
    step_began = 0.0
    step_seconds = 0.0
    gap: dict[str, float]

    def _collect_passes(self) -> Any:
        passes = super()._collect_passes()
        self.gap = self._engine_gap()
        self.device_under_test.synchronize()
        self.step_began = time.perf_counter()
        return passes

    @torch.no_grad()
    def _engine_gap(self) -> dict[str, float]:
        source: Any = self._source
        trainer, sampler, index = [], [], []
        for number, (prompt, ids, log_probs) in enumerate(source.sampled):
            input_ids = torch.tensor([[*prompt, *ids]], device=self.accelerator.device)
            targets = torch.zeros_like(input_ids, dtype=torch.bool)
            targets[:, len(prompt) :] = True
            output = self.model_wrapped(
                input_ids=input_ids, attention_mask=torch.ones_like(input_ids), targets=targets,
                marker_id=self._marker_id, temperature=1.0,
            )  # fmt: skip
            trainer.append(output.log_probs.float().cpu())
            sampler.append(torch.tensor(log_probs))
            index.append(torch.full((len(ids),), number))
        return mismatch_metrics(torch.cat(trainer), torch.cat(sampler), torch.cat(index))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        self.device_under_test.synchronize()
        self.step_seconds = time.perf_counter() - self.step_began


def measure_step(
    device: Device, sizes: Sizes, name: str, checkpoint: Path, method: str, length: int, work: Path
) -> dict[str, Any]:
    """One optimizer step of ``method`` at ``length`` tokens per episode."""
    device.reset()
    engine = TransformersEngine(
        TransformersSettings(
            model=str(checkpoint), device=device.name, dtype="bfloat16", max_slots=sizes.samples,
            max_context=length,
        )
    )  # fmt: skip
    with BackgroundLoop() as loop:
        loop.run(engine.start())
        try:
            return _measure_step(device, sizes, name, checkpoint, method, length, work, engine, loop)
        finally:
            loop.run(engine.stop())
            shutil.rmtree(work / "run", ignore_errors=True)


def _measure_step(
    device: Device,
    sizes: Sizes,
    name: str,
    checkpoint: Path,
    method: str,
    length: int,
    work: Path,
    engine: TransformersEngine,
    loop: BackgroundLoop,
) -> dict[str, Any]:
    settings = TrainConfig.model_validate(
        {
            "model": str(checkpoint), "data": ["unused"], "run_dir": work / "run", "steps": 1,
            "prompts_per_step": 1, "group_size": sizes.samples, "min_valid_samples": 2,
            "micro_batch_samples": 1, "learning_rate": 1e-5, "dtype": "bfloat16", "device": device.name,
            "tensorboard": False, "save_rollouts": False, "gradient_checkpointing": length > sizes.lengths[0],
            "lora": {"rank": 16} if method == "lora" else None,
            # The rows are made up: without a correction every ratio would be clipped.
            "off_policy": {"weights": "token_truncate"},
        }
    )  # fmt: skip
    dtype = torch.bfloat16 if method == "lora" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    policy = DeferralPolicy(max_episode_tokens=length)
    if settings.lora is not None:
        model = attach_adapter(model, settings.lora, tokenizer.convert_tokens_to_ids(policy.marker))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    source = EngineRows(engine, loop, sizes, length)
    trainer = StepTrainer(model, tokenizer, settings, policy, source)
    trainer.device_under_test = device
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    tokens = sizes.samples * length
    return {
        "model": name,
        "method": method,
        "tokens_per_episode": length,
        "episodes": sizes.samples,
        "trained_M": round(trained / 1e6, 2),
        **source.measured,
        "step_s": round(trainer.step_seconds, 2),
        "step_tok_per_s": round(tokens / trainer.step_seconds),
        "peak_GiB": device.peak_gib(),
        "sampler_k3": float(f"{trainer.gap['k3']:.1e}"),
        "grad_norm": float(f"{trainer.state.log_history[0]['grad_norm']:.2g}"),
        "skipped_steps": trainer.skipped_steps,
    }


def machine(device: Device) -> dict[str, str]:
    return {
        "device": torch.cuda.get_device_name() if device.is_cuda else platform.processor() or "CPU",
        "torch": f"torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-training"), help="output directory")
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU: a check of the script")
    parser.add_argument("--budget-s", type=float, default=420, help="start no further case after this")
    parser.add_argument("--device", help="default: cuda, or cpu with --tiny")
    parser.add_argument(
        "--model-dir",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a checkpoint for one of the models",
    )
    arguments = parser.parse_args()
    sizes = TINY if arguments.tiny else FULL
    device = Device(arguments.device or ("cpu" if arguments.tiny else "cuda"))
    given = dict(item.split("=", 1) for item in arguments.model_dir)
    transformers_logging.disable_progress_bar()
    arguments.out.mkdir(parents=True, exist_ok=True)
    work = arguments.out / "work"
    results = Results(arguments.out, machine(device))
    began = time.perf_counter()
    try:
        for size in sizes.head:
            results.head.append(measure_head(device, *size))
            results.write()
            print(results.head[-1], flush=True)
        for name, shape in sizes.shapes.items():
            checkpoint = (
                Path(given[name]) if name in given else make_checkpoint(work / name, shape, device.name)
            )
            for length in sizes.lengths:
                for method in ("lora", "full"):
                    if time.perf_counter() - began > arguments.budget_s:
                        results.skipped.append(f"{name} {method} at {length} tokens")
                        continue
                    results.steps.append(measure_step(device, sizes, name, checkpoint, method, length, work))
                    results.write()
                    print(results.steps[-1], flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        results.write()
    print((arguments.out / "results.md").read_text(encoding="utf-8"))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
