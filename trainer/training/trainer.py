"""The adapter to TRL: its training loop, process handling and logging around our own rollouts and loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from service.deferral.policy import DeferralPolicy
from service.engines.checkpoint import CheckpointError
from trainer.training.checkpoints import (
    find_best,
    link_best,
    prune,
    staged,
    staging_path,
    write_run_state,
)
from trainer.training.chunked_lm_head import HeadOutput, PolicyModel
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.episodes import sample_seed
from trainer.training.loss import IHGRPOLoss, ih_grpo_loss
from trainer.training.rollouts import Means, RolloutSource, Row
from trainer.training.schedule import apply_current_rates, make_scheduler
from trainer.weight_sync.sinks import full_weights

_CHECKPOINTING: Final = next(
    field.name
    for field in fields(GRPOConfig)
    if field.name in ("activation_checkpointing", "gradient_checkpointing")
)
"""Name of the field, which transformers 5.23 changed; vLLM 0.32 needs an older version."""


def grpo_arguments(config: TrainConfig) -> GRPOConfig:
    """Return TRL's arguments for ``config``.

    TRL's options for sampling, rewards and loss are unused: the trainer replaces these parts.

    Raises:
        ConfigError: the batch is not divisible by the number of processes.
    """
    processes = PartialState(cpu=config.device == "cpu").num_processes
    if config.prompts_per_step % processes:
        raise ConfigError(
            f"prompts_per_step is {config.prompts_per_step}: it must be a multiple of the number of "
            f"processes, {processes}"
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
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
    )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The tensors of one forward pass: B rows of prompt and response, padded on the right to T tokens."""

    input_ids: Tensor
    """[B, T] int64."""
    attention_mask: Tensor
    """[B, T] int64; 0 on padding."""
    targets: Tensor
    """[B, T] bool; True on tokens that count in the loss."""
    old_log_probs: Tensor
    """[B, T] float32; the engine's log-probabilities at sampling time."""
    advantages: Tensor
    """[B] float32."""

    @property
    def num_targets(self) -> int:
        return int(self.targets.sum())


def make_micro_batch(rows: Sequence[Row], size: int, pad_id: int) -> MicroBatch:
    """Pad ``rows`` to one length, and add empty rows without targets up to ``size`` rows.

    Raises:
        ValueError: there are more than ``size`` rows.
    """
    if len(rows) > size:
        raise ValueError(f"{len(rows)} rows do not fit a micro-batch of {size}")
    width = max((row.length for row in rows), default=2)
    input_ids = torch.full((size, width), pad_id)
    attention_mask = torch.zeros(size, width, dtype=torch.int64)
    attention_mask[:, 0] = 1  # so that an empty row attends to something: a softmax over nothing is NaN
    targets = torch.zeros(size, width, dtype=torch.bool)
    old_log_probs = torch.zeros(size, width)
    advantages = torch.zeros(size)
    for index, row in enumerate(rows):
        sample, start, end = row.sample, len(row.sample.prompt_ids), row.length
        input_ids[index, :end] = torch.tensor([*sample.prompt_ids, *sample.ids])
        attention_mask[index, :end] = 1
        targets[index, start:end] = torch.tensor(sample.mask, dtype=torch.bool)
        old_log_probs[index, start:end] = torch.tensor(sample.logprobs)
        advantages[index] = row.advantage
    return MicroBatch(input_ids, attention_mask, targets, old_log_probs, advantages)


def split_rows(
    rows: Sequence[Row], *, updates: int, micro_batches: int, size: int, seed: int
) -> list[list[Row]]:
    """Split ``rows`` into ``updates`` optimiser steps of ``micro_batches`` micro-batches each, in that order.

    Every process must run the same number of forward passes, so micro-batches may be short or empty. Each
    step gets an equal share of random rows. Within a step, rows of similar length are grouped, which saves
    padding.

    Raises:
        ValueError: there are more rows than fit.
    """
    if len(rows) > updates * micro_batches * size:
        raise ValueError(f"{len(rows)} rows do not fit {updates} x {micro_batches} micro-batches of {size}")
    order = list(rows)
    if updates > 1:
        Random(seed).shuffle(order)  # noqa: S311
    split = []
    for update in range(updates):
        own = sorted(order[update::updates], key=lambda row: row.length)
        split += [own[i * size : (i + 1) * size] for i in range(micro_batches)]
    return split


@dataclass(frozen=True, slots=True)
class _ForwardPass:
    batch: MicroBatch
    num_tokens: float
    """Targets of the whole optimiser step, divided by the number of processes."""


class IHGRPOTrainer(GRPOTrainer):
    """GRPO trainer with the IH-GRPO loss.

    Rows come from ``source``. The old log-probs are the ones recorded at sampling time.

    Args:
        model: a causal LM in float32.
        tokenizer: saved with the weights; its pad token is used for padding.
        config: the run.
        policy: saved with the weights as ``deferral.json``; defines the execute marker.
        source: collects the rows of each rollout.
        callbacks: callbacks of transformers' Trainer.
        served_config: fields of ``config.json`` to restore to their values before training, such as
            ``dtype``, the dtype for loading. The saved weights stay in float32, so that resuming is exact.

    Raises:
        ConfigError: the tokenizer has no execute marker, or the batch is not divisible by the number of
            processes.
    """

    args: GRPOConfig

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        policy: DeferralPolicy,
        source: RolloutSource,
        callbacks: Sequence[TrainerCallback] = (),
        *,
        served_config: Mapping[str, object] | None = None,
    ) -> None:
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        if policy.marker not in vocabulary:
            raise ConfigError(f"model: its tokenizer has no token {policy.marker!r}, so it cannot defer code")
        self.config = config
        self.skipped_steps = 0
        """Optimiser steps skipped because gradients were not finite or no token was trained on."""
        self._policy = policy
        self._source = source
        self._served_config = dict(served_config or {})
        self._marker_id = vocabulary[policy.marker]
        self._passes: list[_ForwardPass] = []
        self._sums = Means()
        super().__init__(
            model=model,
            reward_funcs=[_unused_reward],
            args=grpo_arguments(config),
            train_dataset=Dataset.from_dict({"prompt": [""]}),  # required by TRL; the source has the problems
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        # TRL replaces `forward` in the same way for its own head: DDP and FSDP wrap the model later and
        # gather the weights that `forward` needs. Must be a plain function: autocast would bind a method to
        # the wrong object.
        head = PolicyModel(model)
        model.forward = lambda *args, **kwargs: head(*args, **kwargs)

    def create_scheduler(
        self,
        num_training_steps: int,  # noqa: ARG002 - the recipe's steps
        optimizer: torch.optim.Optimizer | None = None,
    ) -> LRScheduler:
        """Create the scheduler of the recipe; see `trainer.training.schedule`."""
        if self.lr_scheduler is None:
            target = optimizer or self.optimizer
            assert target is not None  # noqa: S101 - created before
            self.lr_scheduler = make_scheduler(self.config, target)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[no-untyped-call]
        if checkpoint is not None and isinstance(self.lr_scheduler, LambdaLR) and self.optimizer is not None:
            apply_current_rates(self.lr_scheduler, self.optimizer.param_groups)

    def _send_telemetry(self) -> None:
        """Do nothing: TRL would report each run to its telemetry service."""

    def get_train_dataloader(self) -> DataLoader[int]:
        """Return one placeholder per forward pass. Rows are drawn by step number, so resuming is exact."""
        passes: Any = range(self.config.steps * self.args.gradient_accumulation_steps)
        return DataLoader(passes, batch_size=1, collate_fn=list)

    def _prepare_inputs(self, inputs: Any) -> dict[str, Any]:  # noqa: ARG002
        position = self._step % (self.args.gradient_accumulation_steps * self.config.updates_per_rollout)
        if position == 0:
            self._passes = self._collect_passes()
        current, device = self._passes[position], self.accelerator.device
        tensors = [getattr(current.batch, field.name).to(device) for field in fields(MicroBatch)]
        return {"batch": MicroBatch(*tensors), "num_tokens": current.num_tokens}

    def current_weights(self) -> dict[str, Tensor]:
        """Return the full weights as the engine loads them. Every process must call this at the same time."""
        return full_weights(self.accelerator.unwrap_model(self.model_wrapped))

    def log_validation(self, means: Means) -> None:
        """Log metrics of a validation, without those of the current step."""
        Trainer.log(self, dict(means.reduced(self.accelerator)))

    def _collect_passes(self) -> list[_ForwardPass]:
        index = self.state.global_step // self.config.updates_per_rollout
        collected = self._source.collect(index, self.current_weights())
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
        result = []
        for start in range(0, len(batches), passes):
            step = batches[start : start + passes]
            tokens = torch.tensor(float(sum(b.num_targets for b in step)), device=self.accelerator.device)
            mean = float(self.accelerator.reduce(tokens, reduction="mean"))
            result += [_ForwardPass(batch, mean) for batch in step]
        return result

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
        # The loss is a sum over tokens, so all rows can be concatenated: [1, N].
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
        self._record_metrics(loss, output, old_log_probs, inputs["num_tokens"])
        return loss.loss

    @torch.no_grad()
    def _record_metrics(
        self, loss: IHGRPOLoss, output: HeadOutput, old_log_probs: Tensor, num_tokens: float
    ) -> None:
        tokens = len(old_log_probs)
        self._sums.add("entropy", float(output.entropy.sum()), tokens)
        self._sums.add("logprob_gap", float((output.log_probs - old_log_probs).abs().sum()), tokens)
        for name in ("policy_loss", "hierarchy_loss", "clip_fraction", "dual_clip_fraction", "approx_kl"):
            # Each is a part of the step's mean; multiplied by the step's tokens it is a sum.
            self._sums.add(name, float(getattr(loss, name)) * num_tokens, tokens)
        if self.accelerator.sync_gradients:
            self._log_means(self._sums)
            self._sums = Means()

    def _log_means(self, means: Means) -> None:
        for name, value in means.reduced(self.accelerator).items():
            self._metrics["train"][name].append(value)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        num_tokens = self._passes[(self._step - 1) % len(self._passes)].num_tokens
        if num_tokens == 0 or not bool(torch.isfinite(torch.as_tensor(norm)).all()):
            # With gradients of None, AdamW skips weights and moments; with zeros it would update them.
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
            if not _is_write_error(error):
                raise
            raise CheckpointError(
                f"cannot write {final} ({error}): free some space, then rerun the same command to resume "
                f"from the last complete checkpoint"
            ) from error
        if main:
            best = find_best(final.parent, self.config)
            if best is not None:
                link_best(best.path)
            prune(final.parent, self.config.keep_checkpoints, None if best is None else best.path)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, final: Path, model: nn.Module, trial: Any, *, main: bool) -> None:
        with staged(final) if main else nullcontext(staging_path(final)) as staging:
            self.accelerator.wait_for_everyone()
            Trainer._save_checkpoint(self, model, trial)  # TRL's method also writes a model card
            self.accelerator.wait_for_everyone()
            if main:
                _move_up(staging / final.name, staging)
                self._policy.save(staging)
                _update_json(staging / "config.json", self._served_config)
                write_run_state(
                    staging,
                    self.config,
                    self._source.fingerprint,
                    self.skipped_steps,
                    self.accelerator.num_processes,
                )


def _is_write_error(error: Exception) -> bool:
    """Return True if writing a file failed. torch raises a plain RuntimeError in that case."""
    return isinstance(error, OSError | SafetensorError) or "PytorchStreamWriter" in str(error)


def _move_up(inner: Path, outer: Path) -> None:
    """Move the files that transformers saved in a subdirectory one level up."""
    for path in inner.iterdir():
        path.rename(outer / path.name)
    inner.rmdir()
    (outer / "training_args.bin").unlink(missing_ok=True)  # an unused pickle


def _update_json(path: Path, changes: Mapping[str, object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, **changes}, indent=2) + "\n", encoding="utf-8")


def _unused_reward(**_: object) -> list[float | None]:
    """Placeholder for TRL, which requires a reward function. Rows already contain their advantages."""
    raise AssertionError("rewards are computed during the rollout")
