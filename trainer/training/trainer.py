"""The adapter to TRL: its training loop, process handling and logging around our own rollouts and loss."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from service.deferral.policy import DeferralPolicy
from service.engines.checkpoint import CheckpointError
from service.engines.execute_head import split_execute_head
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
from trainer.training.execute_head import find_execute_head, load_execute_head, save_execute_head
from trainer.training.lora import (
    ReferencePolicy,
    base_name,
    load_adapter,
    merged_weights,
    parameter_groups,
    save_adapter,
)
from trainer.training.loss import (
    IHGRPOLoss,
    correct,
    ih_grpo_loss,
    mismatch_metrics,
    reference_kl,
)
from trainer.training.rollouts import Means, MicroBatch, RolloutSource, make_micro_batch, split_rows
from trainer.training.setup import select_device
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
        ConfigError: the batch is not divisible by the number of processes, or the device is not available.
    """
    state = PartialState(cpu=config.device == "cpu")
    processes = state.num_processes
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
    arguments = GRPOConfig(
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
        use_cpu=state.device.type == "cpu",
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
    if config.device.startswith("cuda:"):  # transformers has set accelerate up again, with the first GPU
        select_device(PartialState(), config.device)
        arguments.__dict__["_setup_devices"] = torch.device(config.device)  # a cached property
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else transformers spreads one process over all GPUs
    return arguments


@dataclass(frozen=True, slots=True)
class _ForwardPass:
    batch: MicroBatch
    divisor: float
    """Divisor of the loss: targets of the whole optimiser step (or what else the aggregation counts), divided
    by the number of processes. 0 if the step has no target."""
    is_first_update: bool
    """Whether the weights are still those that the rollout was sampled with."""


class IHGRPOTrainer(GRPOTrainer):
    """GRPO trainer with the IH-GRPO loss.

    Rows come from ``source``. The old log-probs are the ones recorded at sampling time.

    Args:
        model: a causal LM in float32, or one with an adapter, see `trainer.training.lora.attach_adapter`.
        tokenizer: saved with the weights; its pad token is used for padding.
        config: the run.
        policy: saved with the weights as ``deferral.json``; defines the execute marker.
        source: collects the rows of each rollout.
        callbacks: callbacks of transformers' Trainer.
        served_config: fields of ``config.json`` to restore to their values before training, such as
            ``dtype``, the dtype for loading. The saved weights stay in float32, so that resuming is exact.
        save_rollouts_to: adds the state of asynchronous rollouts to the directory of a checkpoint.
        base_fingerprint: of the model that the run starts from, if its weights are used after the start.

    Raises:
        ConfigError: the tokenizer has no execute marker, or the batch is not divisible by the number of
            processes.
    """

    args: GRPOConfig

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        policy: DeferralPolicy,
        source: RolloutSource,
        callbacks: Sequence[TrainerCallback] = (),
        *,
        served_config: Mapping[str, object] | None = None,
        save_rollouts_to: Callable[[Path], None] | None = None,
        base_fingerprint: str | None = None,
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
        self._save_rollouts_to = save_rollouts_to
        self._marker_id = vocabulary[policy.marker]
        self._base_fingerprint = base_fingerprint
        self._passes: list[_ForwardPass] = []
        self._sums = Means()
        self._mismatch: list[tuple[Tensor, Tensor, Tensor]] = []
        self._reference = _make_reference(model, config)
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
        head = PolicyModel(model.get_base_model() if isinstance(model, PeftModel) else model)
        wrapped: Any = model
        wrapped.forward = lambda *args, **kwargs: head(*args, **kwargs)
        if isinstance(self._reference, PolicyModel):
            self._reference.to(self.accelerator.device)
        if self.is_fsdp_enabled:
            self._prepare_fsdp(model)
        if self.is_fsdp_enabled and config.has_execute_head:
            raise ConfigError(
                "execute_head: a second head cannot be trained under FSDP: set execute_head = 'marker', or "
                "use recipes/accelerate/ddp.yaml"
            )

    def _prepare_fsdp(self, model: PreTrainedModel | PeftModel) -> None:
        """Adjust what accelerate shards and casts when training starts."""
        plugin: Any = self.accelerator.state.fsdp_plugin
        if self.config.dtype == "bfloat16":
            # accelerate's policy would also round gradients and the float32 outputs of the head.
            plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)
        if isinstance(model, PeftModel):
            # accelerate gathers an untied LM head with the final norm, which it looks for in this attribute.
            base: Any = model.get_base_model()
            object.__setattr__(model, "decoder", base.base_model)
            object.__setattr__(model, "base_model_prefix", "decoder")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create AdamW as transformers does; the marker's row of an adapter has its own learning rate."""
        lora = self.config.lora
        if lora is None or self.optimizer is not None:
            return super().create_optimizer(model)
        trained: Any = self.model if model is None else model
        optimizer, arguments = self.get_optimizer_cls_and_kwargs(self.args, trained)
        groups = parameter_groups(
            trained,
            learning_rate=self.config.learning_rate,
            marker_lr=lora.marker_lr or self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        self.optimizer = optimizer(groups, **arguments)
        return self.optimizer

    def create_scheduler(
        self,
        num_training_steps: int,  # noqa: ARG002 - the recipe's steps
        optimizer: torch.optim.Optimizer | None = None,
    ) -> LRScheduler:
        """Create the scheduler of the recipe; see `TrainConfig.rate_factor`."""
        if self.lr_scheduler is None:
            target = optimizer or self.optimizer
            assert target is not None  # noqa: S101 - created before
            config = self.config
            # A plain function, so that a checkpoint does not contain it.
            self.lr_scheduler = LambdaLR(target, lambda step: config.rate_factor(step))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[no-untyped-call]
        scheduler = self.lr_scheduler
        if checkpoint is None or not isinstance(scheduler, LambdaLR) or self.optimizer is None:
            return
        # The checkpoint contains the rates of the schedule that it was saved with, which may have had another
        # number of steps.
        factor = self.config.rate_factor(scheduler.last_epoch)
        scheduler._last_lr = [base * factor for base in scheduler.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate

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
        current = self._passes[position]
        return {
            "batch": current.batch.to(self.accelerator.device),
            "divisor": current.divisor,
            "is_first_update": current.is_first_update,
        }

    def current_weights(self) -> dict[str, Tensor]:
        """Return the full weights as the engine loads them. Every process must call this at the same time."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        return merged_weights(model) if isinstance(model, PeftModel) else full_weights(model)

    def log_validation(self, means: Means) -> None:
        """Log metrics of a validation, without those of the current step."""
        Trainer.log(self, dict(means.reduced(self.accelerator)))

    def _collect_passes(self) -> list[_ForwardPass]:
        index = self.state.global_step // self.config.updates_per_rollout
        weights = self.current_weights()
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
        del weights
        batches = [make_micro_batch(rows, size, self._tokenizer.pad_token_id) for rows in split]
        if self._needs_proximal_pass:
            batches = [self._corrected(batch) for batch in batches]
        result = []
        for start in range(0, len(batches), passes):
            step = batches[start : start + passes]
            counts = torch.tensor(
                [float(sum(b.num_targets for b in step)), float(sum(b.num_rows for b in step))],
                device=self.accelerator.device,
            )
            tokens, rows = self.accelerator.reduce(counts, reduction="mean").tolist()
            divisor = tokens
            if tokens and self.config.aggregation == "sample-mean":
                divisor = rows
            elif tokens and self.config.aggregation == "constant":
                divisor = rows * self._policy.max_episode_tokens
            result += [_ForwardPass(batch, divisor, start == 0) for batch in step]
        return result

    @property
    def _needs_proximal_pass(self) -> bool:
        """Whether the trainer's log-probs from before the update need a separate forward pass.

        False if weights are only truncated and each rollout has one update, whose own log-probs then suffice.
        """
        settings = self.config.off_policy
        return settings.removes_tokens or (settings.is_on and self.config.updates_per_rollout > 1)

    def _corrected(self, batch: MicroBatch) -> MicroBatch:
        """Add the trainer's log-probs and the importance weights, and remove rejected tokens."""
        targets, device = batch.targets, self.accelerator.device
        log_probs = self._log_probs_without_gradient(self.model_wrapped, batch.to(device)).cpu()
        sampler = batch.old_log_probs[targets]
        self._mismatch.append((log_probs, sampler, batch.sample_index))  # with rejected tokens
        found = correct(self.config.off_policy, log_probs, sampler, batch.sample_index)
        self._sums.add("samples/rejected_tokens", int((~found.keep).sum()), len(log_probs))
        proximal, weights = torch.zeros_like(batch.old_log_probs), torch.ones_like(batch.old_log_probs)
        proximal[targets], weights[targets] = log_probs, found.weights
        kept = torch.zeros_like(targets)
        kept[targets] = found.keep
        return replace(batch, targets=kept, proximal_log_probs=proximal, weights=weights)

    @torch.no_grad()
    def _log_probs_without_gradient(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        was_training = model.training
        model.eval()  # no dropout
        try:
            return self._forward(model, batch).log_probs
        finally:
            model.train(was_training)

    def _forward(self, model: nn.Module, batch: MicroBatch) -> HeadOutput:
        output: HeadOutput = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            targets=batch.targets,
            marker_id=self._marker_id,
            temperature=self.config.temperature,
        )
        return output

    def _reference_log_probs(self, model: nn.Module, batch: MicroBatch) -> Tensor | None:
        """Log-probs under the policy at the start of the run; None if they are not needed."""
        if self._reference is None:
            return None
        if isinstance(self._reference, ReferencePolicy):
            with self._reference.in_place():
                return self._log_probs_without_gradient(model, batch)
        with self.accelerator.autocast():
            return self._log_probs_without_gradient(self._reference, batch)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        batch: MicroBatch = inputs["batch"]
        divisor = max(inputs["divisor"], 1.0)
        reference = self._reference_log_probs(model, batch)  # before the policy's own pass
        output = self._forward(model, batch)
        sampler, sample = batch.old_log_probs[batch.targets], batch.sample_index
        old_log_probs, weights = self._off_policy(batch, output, sampler, sample)
        if self.config.aggregation == "sample-mean":
            weights = weights / sample.bincount(minlength=1).clamp(min=1)[sample]
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
            dual_clip=self.config.dual_clip or math.inf,
            hierarchy_weight=self.config.effective_hierarchy_weight,
            num_tokens=divisor,
            weights=weights[None],
            explicit=self.config.method == "eh-grpo" and not self.config.has_execute_head,
        )
        if inputs["is_first_update"] and batch.proximal_log_probs is None:
            self._mismatch.append((output.log_probs.detach(), sampler, sample))
        total = loss.loss
        if reference is not None:
            divergence = reference_kl(output.log_probs, reference)
            total = total + self.config.kl_weight * (divergence * weights).sum() / divisor
            self._sums.add("reference_kl", float(divergence.detach().sum()), len(sampler))
        self._record_metrics(loss, output, sampler, divisor)
        return total

    def _off_policy(
        self, batch: MicroBatch, output: HeadOutput, sampler: Tensor, sample: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probs that the ratio is taken to, and the importance weights; [N] each."""
        if batch.proximal_log_probs is not None and batch.weights is not None:
            return batch.proximal_log_probs[batch.targets], batch.weights[batch.targets]
        if not self.config.off_policy.is_on:
            return sampler, torch.ones_like(sampler)
        proximal = output.log_probs.detach()
        return proximal, correct(self.config.off_policy, proximal, sampler, sample).weights

    @torch.no_grad()
    def _record_metrics(self, loss: IHGRPOLoss, output: HeadOutput, sampler: Tensor, divisor: float) -> None:
        tokens = len(sampler)
        self._sums.add("entropy", float(output.entropy.sum()), tokens)
        self._sums.add("logprob_gap", float((output.log_probs - sampler).abs().sum()), tokens)
        for name in ("clip_fraction", "dual_clip_fraction", "approx_kl"):
            # Each is a sum over tokens, divided; multiplied by the divisor it is a sum again.
            self._sums.add(name, float(getattr(loss, name)) * divisor, tokens)
        for name in ("policy_loss", "hierarchy_loss"):
            # Micro-batches add up to the step's loss.
            self._sums.add(name, float(getattr(loss, name)) * self.args.gradient_accumulation_steps)
        if self.accelerator.sync_gradients:
            self._add_mismatch()
            self._log_means(self._sums)
            self._sums = Means()

    def _add_mismatch(self) -> None:
        """Add the mismatch of sampler and trainer over the tokens of all processes."""
        if not self._mismatch:
            return
        first = self.accelerator.process_index * len(self._mismatch)
        rows = self.args.per_device_train_batch_size
        own = torch.cat(
            [
                torch.stack([trainer, sampler, sample.to(trainer) + (first + place) * rows], dim=1)
                for place, (trainer, sampler, sample) in enumerate(self._mismatch)
            ]
        )
        self._mismatch.clear()
        padded = self.accelerator.pad_across_processes(own.to(self.accelerator.device), pad_index=-1)
        gathered = self.accelerator.gather(padded)
        trainer, sampler, sample = gathered[gathered[:, 2] >= 0].T
        for name, value in mismatch_metrics(trainer, sampler, sample.long()).items():
            self._sums.add(f"mismatch/{name}", value)  # equal on all processes

    def _log_means(self, means: Means) -> None:
        for name, value in means.reduced(self.accelerator).items():
            self._metrics["train"][name].append(value)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        divisor = self._passes[(self._step - 1) % len(self._passes)].divisor
        if divisor == 0 or not bool(torch.isfinite(torch.as_tensor(norm)).all()):
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
            if self._save_rollouts_to is not None:
                self._save_rollouts_to(staging)
            self.accelerator.wait_for_everyone()
            if main:
                _move_up(staging / final.name, staging)
                self._policy.save(staging)
                if self.config.lora is None:
                    _update_json(staging / "config.json", self._served_config)
                write_run_state(
                    staging,
                    self.config,
                    self._source.fingerprint,
                    self.skipped_steps,
                    self.accelerator.num_processes,
                    self._base_fingerprint,
                )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        directory = Path(output_dir or str(self.args.output_dir))
        model: Any = self.accelerator.unwrap_model(self.model)
        head = find_execute_head(model)
        if self.config.lora is None:
            if head is not None:
                state_dict, _ = split_execute_head(state_dict or model.state_dict())
            super()._save(output_dir, state_dict)
            if head is not None and self.args.should_save:
                save_execute_head(head, self._policy.marker, directory)
            return
        if not self.args.should_save:
            return
        directory.mkdir(parents=True, exist_ok=True)
        if head is not None:
            save_execute_head(head, self._policy.marker, directory)
        save_adapter(
            model,
            directory,
            base_name=base_name(self.config.lora, self.config.model),
            fingerprint=self._base_fingerprint,
            state=state_dict,
        )
        self._tokenizer.save_pretrained(str(directory))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        adapted: Any = self.accelerator.unwrap_model(self.model if model is None else model)
        if (head := find_execute_head(adapted)) is not None:
            load_execute_head(head, Path(resume_from_checkpoint))
        if self.config.lora is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_adapter(adapted, Path(resume_from_checkpoint))


def _make_reference(
    model: PreTrainedModel | PeftModel, config: TrainConfig
) -> ReferencePolicy | PolicyModel | None:
    """Return the policy at the start of the run, if the loss has a KL term."""
    if not config.kl_weight:
        return None
    if isinstance(model, PeftModel):
        return ReferencePolicy(model)
    frozen: Any = copy.deepcopy(model)
    frozen.to(torch.bfloat16 if config.dtype == "bfloat16" else torch.float32)
    return PolicyModel(frozen.requires_grad_(False)).eval()


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
