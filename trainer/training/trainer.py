"""The adapter to TRL: its loop, its processes and its logging, around our rollout and our loss.

A recipe in the words of TRL.

Figures as (sum, count) pairs: adding the pairs of several processes gives their exact mean.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from accelerate import Accelerator, PartialState
from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from service.deferral.policy import DeferralPolicy
from service.engines.checkpoint import CheckpointError
from trainer.training.batch import MicroBatch, Row, make_micro_batch, split_rows
from trainer.training.checkpoints import prune, staged, staging_path, write_state
from trainer.training.chunked_lm_head import HeadOutput, PolicyModel
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.episodes import sample_seed
from trainer.training.loss import IHGRPOLoss, ih_grpo_loss
from trainer.weight_sync.push import full_weights

_CHECKPOINTING: Final = next(
    field.name
    for field in fields(GRPOConfig)
    if field.name in ("activation_checkpointing", "gradient_checkpointing")
)
"""transformers 5.23 gave it its new name; vLLM 0.32 wants an older one."""


def grpo_arguments(config: TrainConfig) -> GRPOConfig:
    """TRL's arguments for ``config``. Those of sampling, rewards and the loss are not used: we have our own.

    Raises:
        ConfigError: the processes do not divide the batch, or a wanted package is missing.
    """
    processes = PartialState(cpu=config.device == "cpu").num_processes
    if config.prompts_per_step % processes:
        raise ConfigError(
            f"prompts_per_step is {config.prompts_per_step}: it must be a multiple of the {processes} "
            f"processes"
        )
    if config.mini_batch % (config.micro_batch_samples * processes):
        raise ConfigError(
            f"micro_batch_samples is {config.micro_batch_samples}: on {processes} processes it must divide "
            f"{config.mini_batch} / {processes}"
        )
    checkpointing: dict[str, Any] = {_CHECKPOINTING: config.gradient_checkpointing}
    passes = config.mini_batch // (config.micro_batch_samples * processes)
    return GRPOConfig(
        output_dir=str(config.run_dir),
        seed=config.seed,
        max_steps=config.steps,
        num_generations=config.group_size,
        per_device_train_batch_size=config.micro_batch_samples,
        gradient_accumulation_steps=passes,
        steps_per_generation=passes * config.updates_per_rollout,
        temperature=config.temperature,
        beta=0.0,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.dtype == "bfloat16",
        **checkpointing,
        use_cpu=config.device == "cpu",
        save_strategy="steps",
        save_steps=config.save_every,
        logging_strategy="steps",
        logging_steps=1,
        report_to=_reporters(config),
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
    )


def _reporters(config: TrainConfig) -> list[str]:
    if config.wandb_project is None:
        return []
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError("wandb_project is set but wandb is not installed: pip install 'ih-grpo[wandb]'")
    # The environment is the only way that transformers offers.
    os.environ["WANDB_PROJECT"] = config.wandb_project
    os.environ.setdefault("WANDB_DIR", str(config.run_dir))
    return ["wandb"]


class Means:
    """Running means by name. Not thread-safe."""

    def __init__(self) -> None:
        self._pairs: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def add(self, name: str, total: float, count: float = 1.0) -> None:
        """Add ``count`` items that sum to ``total``."""
        old_total, old_count = self._pairs[name]
        self._pairs[name] = (old_total + float(total), old_count + float(count))

    def reduced(self, accelerator: Accelerator) -> Mapping[str, float]:
        """Means over all processes, which must have the same names."""
        names = sorted(self._pairs)
        pairs = torch.tensor([self._pairs[name] for name in names], dtype=torch.float64, device="cpu")
        if accelerator.num_processes > 1:
            pairs = accelerator.reduce(pairs.to(accelerator.device, torch.float32)).cpu()
        return {
            name: total / count
            for name, (total, count) in zip(names, pairs.reshape(-1, 2).tolist(), strict=True)
            if count
        }


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """What one rollout gave this process."""

    rows: Sequence[Row]
    """At most ``prompts_per_step x group_size / processes``."""
    metrics: Means


class RowSource(Protocol):
    """Where rows come from."""

    @property
    def fingerprint(self) -> str:
        """Of the problems; a run that is resumed must have the same."""
        ...

    def collect(self, index: int, weights: Mapping[str, Tensor]) -> RolloutBatch:
        """Rollout number ``index`` under ``weights``; the same arguments give the same rows."""
        ...


@dataclass(frozen=True, slots=True)
class _Work:
    batch: MicroBatch
    num_tokens: float
    """Targets of the whole optimiser step, divided by the number of processes."""


class IHGRPOTrainer(GRPOTrainer):
    """Trains with IH-GRPO. Rows come from ``source``, and the old log-probs are those of sampling.

    Args:
        model: a causal LM in float32.
        tokenizer: saved beside the weights; its pad token fills rows up.
        config: the run.
        policy: saved beside the weights as ``deferral.json``; names the execute marker.
        source: gives each rollout's rows.
        callbacks: of transformers' Trainer.
        served_config: fields of ``config.json`` to be as they were before training, such as ``dtype``, which
            the weights are loaded in. They themselves stay in float32, so that resuming is exact.

    Raises:
        ConfigError: the tokenizer lacks the marker, or the processes do not divide the batch.
    """

    args: GRPOConfig

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        policy: DeferralPolicy,
        source: RowSource,
        callbacks: Sequence[TrainerCallback] = (),
        *,
        served_config: Mapping[str, object] | None = None,
    ) -> None:
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        if policy.marker not in vocabulary:
            raise ConfigError(f"model: its tokenizer has no token {policy.marker!r}, so it can't defer")
        self.config = config
        self.skipped_steps = 0
        """Optimiser steps left out: gradients that are not finite, or no token to learn from."""
        self._policy = policy
        self._source = source
        self._served_config = dict(served_config or {})
        self._marker_id = vocabulary[policy.marker]
        self._work: list[_Work] = []
        self._sums = Means()
        super().__init__(
            model=model,
            reward_funcs=[_rewards_come_with_the_rows],
            args=grpo_arguments(config),
            train_dataset=Dataset.from_dict({"prompt": [""]}),  # TRL wants one; the source has the problems
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        # As TRL does with a head of its own: DDP and FSDP wrap the model later and then gather what `forward`
        # needs. A plain function, for autocast would bind a method to the wrong object.
        head = PolicyModel(model)
        model.forward = lambda *args, **kwargs: head(*args, **kwargs)

    def _send_telemetry(self) -> None:
        """Nobody is told of a run."""

    def get_train_dataloader(self) -> DataLoader[int]:
        """One placeholder a forward pass: rows are drawn by step number, which makes resuming exact."""
        passes: Any = range(self.config.steps * self.args.gradient_accumulation_steps)
        return DataLoader(passes, batch_size=1, collate_fn=list)

    def _prepare_inputs(self, inputs: Any) -> dict[str, Any]:  # noqa: ARG002
        position = self._step % (self.args.gradient_accumulation_steps * self.config.updates_per_rollout)
        if position == 0:
            self._work = self._collect()
        work, device = self._work[position], self.accelerator.device
        tensors = [getattr(work.batch, field.name).to(device) for field in fields(MicroBatch)]
        return {"batch": MicroBatch(*tensors), "num_tokens": work.num_tokens}

    def _collect(self) -> list[_Work]:
        index = self.state.global_step // self.config.updates_per_rollout
        weights = full_weights(self.accelerator.unwrap_model(self.model_wrapped))
        collected = self._source.collect(index, weights)
        self._log_means(collected.metrics)
        passes, size = self.args.gradient_accumulation_steps, self.args.per_device_train_batch_size
        split = split_rows(
            collected.rows,
            updates=self.config.updates_per_rollout,
            micro_batches=passes,
            size=size,
            seed=sample_seed(self.config.seed, index),
        )
        batches = [make_micro_batch(rows, size, self._tokenizer.pad_token_id) for rows in split]
        work = []
        for start in range(0, len(batches), passes):
            step = batches[start : start + passes]
            tokens = torch.tensor(float(sum(b.num_targets for b in step)), device=self.accelerator.device)
            mean = float(self.accelerator.reduce(tokens, reduction="mean"))
            work += [_Work(batch, mean) for batch in step]
        return work

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        batch: MicroBatch = inputs["batch"]
        output: HeadOutput = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            targets=batch.targets,
            marker_id=self._marker_id,
            temperature=self.config.temperature,
        )
        old_log_probs = batch.old_log_probs[batch.targets]
        advantages = batch.advantages[:, None].expand_as(batch.targets)[batch.targets]
        # The loss is a sum over tokens, so the rows may be laid end to end: [1, N].
        loss = ih_grpo_loss(
            log_probs=output.log_probs[None],
            old_log_probs=old_log_probs[None],
            execute_log_probs=output.execute_log_probs[None],
            execute_logits=output.execute_logits[None],
            advantages=advantages[None],
            is_execute=(batch.input_ids[batch.targets] == self._marker_id)[None],
            mask=torch.ones_like(old_log_probs, dtype=torch.bool)[None],
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
            dual_clip=self.config.dual_clip,
            hierarchy_weight=self.config.effective_hierarchy_weight,
            num_tokens=max(inputs["num_tokens"], 1.0),
        )
        self._note(loss, output, old_log_probs, inputs["num_tokens"])
        return loss.loss

    @torch.no_grad()
    def _note(self, loss: IHGRPOLoss, output: HeadOutput, old_log_probs: Tensor, num_tokens: float) -> None:
        tokens = len(old_log_probs)
        self._sums.add("entropy", float(output.entropy.sum()), tokens)
        self._sums.add("logprob_gap", float((output.log_probs - old_log_probs).abs().sum()), tokens)
        for name in ("policy_loss", "hierarchy_loss", "clip_fraction", "dual_clip_fraction", "approx_kl"):
            # Each is a share of the step's mean; times the step's tokens it is a sum.
            self._sums.add(name, float(getattr(loss, name)) * num_tokens, tokens)
        if self.accelerator.sync_gradients:
            self._log_means(self._sums)
            self._sums = Means()

    def _log_means(self, means: Means) -> None:
        for name, value in means.reduced(self.accelerator).items():
            self._metrics["train"][name].append(value)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        num_tokens = self._work[(self._step - 1) % len(self._work)].num_tokens
        if num_tokens == 0 or not bool(torch.isfinite(torch.as_tensor(norm)).all()):
            # Without gradients AdamW leaves weights and moments alone; with zeros it would not.
            model.zero_grad(set_to_none=True)
            self.skipped_steps += 1
        self._metrics["train"]["skipped_steps"].append(float(self.skipped_steps))
        return norm

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002
        return str(staging_path(self._checkpoint()))

    def _checkpoint(self) -> Path:
        return self.config.run_dir / "checkpoints" / f"checkpoint-{self.state.global_step}"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        final = self._checkpoint()
        if final.exists():
            return  # the last step is also a multiple of save_every
        main = self.accelerator.is_main_process
        try:
            self._write_checkpoint(final, model, trial, main=main)
        except Exception as error:
            if not _is_of_the_disk(error):
                raise
            raise CheckpointError(
                f"{final} can't be written ({error}): make room, and the same command goes on from the last "
                f"whole checkpoint"
            ) from error
        if main:
            prune(final.parent, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, final: Path, model: nn.Module, trial: Any, *, main: bool) -> None:
        with staged(final) if main else nullcontext(staging_path(final)) as staging:
            self.accelerator.wait_for_everyone()
            Trainer._save_checkpoint(self, model, trial)  # TRL's own also writes a model card
            self.accelerator.wait_for_everyone()
            if main:
                _lift(staging / final.name, staging)
                self._policy.save(staging)
                _update_json(staging / "config.json", self._served_config)
                write_state(staging, self.config, self._source.fingerprint, self.skipped_steps)


def _is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed; torch says so with a RuntimeError like any other."""
    return isinstance(error, OSError | SafetensorError) or "PytorchStreamWriter" in str(error)


def _lift(inner: Path, outer: Path) -> None:
    """Move what transformers saved in a directory of its own one level up."""
    for path in inner.iterdir():
        path.rename(outer / path.name)
    inner.rmdir()
    (outer / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads


def _update_json(path: Path, changes: Mapping[str, object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, **changes}, indent=2) + "\n", encoding="utf-8")


def _rewards_come_with_the_rows(**_: object) -> list[float | None]:
    raise AssertionError("rewards come with the rows")
