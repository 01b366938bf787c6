"""A training run from recipe to checkpoint: set-up, resuming and clean-up."""

from __future__ import annotations

from contextlib import AsyncExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
)
from transformers.utils import logging as transformers_logging

from service.deferral.policy import DeferralPolicy
from service.engines.adapters import check_base, fingerprint
from service.engines.base import Tokenizer
from service.engines.model_lookup import locate
from service.sandbox.base import Sandbox
from trainer.environments.tools import prompt_section
from trainer.training.checkpoints import check_resumable, find_best, latest, resume_notices
from trainer.training.config import TrainConfig
from trainer.training.execute_head import EPISODES, attach_execute_head, has_saved_head, save_start_head
from trainer.training.generation import (
    make_generation,
    make_rewards,
    ray_connection,
    rollout_settings,
)
from trainer.training.hub_push import prepare_push, push
from trainer.training.lora import attach_adapter, inspect_marker_row
from trainer.training.progress import RunProgress
from trainer.training.reporters import check_reporters, make_reporters
from trainer.training.rollouts import BackgroundLoop, RolloutCollector, RunParts, Shard
from trainer.training.run_files import run_lock, write_atomically
from trainer.training.run_info import write_info
from trainer.training.setup import load_training_set, select_device, start_all
from trainer.training.trainer import IHGRPOTrainer
from trainer.training.validation import ValidationCallback, Validator, load_validation_set

PROCESS_TIMEOUT: Final = timedelta(hours=2)
"""Time that a process waits for another one, whose rollout may take longer."""


def train(
    config: TrainConfig,
    console: Console,
    *,
    sandbox: Sandbox | None = None,
    trainer_class: type[IHGRPOTrainer] = IHGRPOTrainer,
    recipe_name: str | None = None,
) -> Path:
    """Train to ``config.steps``, resuming from the last checkpoint in ``config.run_dir`` if there is one.

    Args:
        config: the recipe.
        console: output for progress.
        sandbox: replaces the recipe's sandbox; not started. Unused with Ray.
        trainer_class: a subclass, to observe the training.
        recipe_name: name of the recipe's file, for lists of runs.

    Returns:
        The last checkpoint, ready to be served.

    Raises:
        ConfigError, DataError, CheckpointError, DirectoryError, ValueError: the run cannot start; the
            message gives the reason.
        EngineError, SandboxError, WeightSyncError: the engine or sandbox failed, or a server did not accept
            new weights.
        PushError: the run is finished, but the upload to the hub failed.
    """
    processes = PartialState(cpu=config.device == "cpu", timeout=PROCESS_TIMEOUT)
    select_device(processes, config.device)
    # Two runs in one directory would remove each other's checkpoints.
    with run_lock(config.run_dir) if processes.is_main_process else nullcontext():
        final = _train(config, console, processes, sandbox, trainer_class, recipe_name)
        best = find_best(final.parent, config)
        if best is not None and processes.is_main_process:
            console.print(f"best checkpoint: {best}", highlight=False)
        if config.push_to is not None and processes.is_main_process:
            url = push(best.path if best else final, config, config.push_to)
            console.print(f"uploaded to {url}", highlight=False, soft_wrap=True)
        return final


def _train(
    config: TrainConfig,
    console: Console,
    processes: PartialState,
    sandbox: Sandbox | None,
    trainer_class: type[IHGRPOTrainer],
    recipe_name: str | None,
) -> Path:
    check_reporters(config)
    rewards = make_rewards(config)  # first: a mistake in a reward is found before a model is downloaded
    model_dir = locate(config.model, base=config.base)
    if config.lora is not None and config.lora.adapter is not None:
        check_base(config.lora.adapter, model_dir)
    policy = config.resolve_policy(model_dir)
    generation = make_generation(config, model_dir, policy, str(processes.device), sandbox)
    tools = prompt_section(config.tools)
    data = load_training_set(config, generation.tokenizer, policy, tools)
    held_out = load_validation_set(config, generation.tokenizer, policy, data, tools)
    progress = RunProgress(console if processes.is_main_process else Console(quiet=True))
    if processes.is_main_process:
        console.print(str(data), highlight=False)
        if data.overlaps is not None:
            console.print(str(data.overlaps), highlight=False)
            write_atomically(config.run_dir / "decontamination.json", data.overlaps.to_json().encode())
        if held_out is not None:
            console.print(str(held_out), highlight=False)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with ray_connection(config), BackgroundLoop() as loop, progress:
        parts = RunParts(
            config,
            rollout_settings(config, policy),
            generation.tokenizer,
            generation.worker,
            generation.sink,
            rewards,
            loop,
            Shard(processes.process_index, processes.num_processes),
            tools,
        )
        source = RolloutCollector(parts, data.problems, on_group=progress.on_group)
        checkpoint = latest(config.run_dir / "checkpoints")
        # Frozen weights and the reference come from the model, not from the checkpoint.
        base = fingerprint(model_dir) if config.uses_base_weights else None
        skipped = 0
        if checkpoint is not None:
            skipped = check_resumable(checkpoint, config, source.fingerprint, base)
            if processes.is_main_process:
                for notice in resume_notices(checkpoint, config, processes.num_processes):
                    console.print(f"note: {notice}", highlight=False, soft_wrap=True)
            if config.max_staleness:
                queue = source.restore(checkpoint)
                if processes.is_main_process:
                    console.print(
                        f"asynchronous rollouts: {len(queue.finished)} finished episodes kept, "
                        f"{len(queue.running)} running ones started again",
                        highlight=False,
                    )
        prepare_push(config)
        stack = AsyncExitStack()
        try:
            loop.run(stack.enter_async_context(rewards))
            loop.run(start_all(stack, *generation.parts))
            stack.push_async_callback(source.close)  # first: episodes use all other parts
            model, marker_row = _load_model(config, model_dir, policy, generation.tokenizer)
            if processes.is_main_process:
                console.print(marker_row, highlight=False, soft_wrap=True)
            if config.has_execute_head:
                start = config.lora.adapter if config.lora and config.lora.adapter else model_dir
                if checkpoint is not None and has_saved_head(config.run_dir):
                    start = config.run_dir  # the reference of kl_weight has the head of the start
                episodes = [] if has_saved_head(start) else loop.run(source.sample_plainly(EPISODES))
                line = attach_execute_head(
                    model.to(processes.device), policy.marker, generation.tokenizer, start, episodes, config
                )
                if processes.is_main_process:
                    save_start_head(model, policy.marker, config.run_dir)
                    console.print(line, highlight=False, soft_wrap=True)
            reporters = []
            if processes.is_main_process:
                info = write_info(config, processes.num_processes, recipe_name)
                reporters = make_reporters(config, info)
            trainer = trainer_class(
                model,
                AutoTokenizer.from_pretrained(model_dir),
                config,
                policy,
                source,
                [progress, *reporters],
                served_config=_served_config(model_dir),
                save_rollouts_to=source.save,
                base_fingerprint=base,
            )
            trainer.skipped_steps = skipped
            if held_out is not None:
                validator = Validator(parts, held_out.problems)
                trainer.add_callback(ValidationCallback(trainer, validator, progress.on_validation))
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            loop.run(stack.aclose())
    final = latest(config.run_dir / "checkpoints")
    assert final is not None  # noqa: S101 - the last step writes one
    return final


def _load_model(
    config: TrainConfig, model_dir: Path, policy: DeferralPolicy, tokenizer: Tokenizer
) -> tuple[Any, str]:
    """Return the model, with its adapter if it trains one, and a line about the marker's row."""
    marker_id = tokenizer.token_id(policy.marker)
    assert marker_id is not None  # noqa: S101 - the training set was loaded with this tokenizer
    is_half = config.lora is not None and config.dtype == "bfloat16"
    dtype = torch.bfloat16 if is_half else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
    row = inspect_marker_row(model, marker_id, tokenizer.vocab_size)
    rate: float | None = config.learning_rate
    if config.lora is not None:
        rate = (config.lora.marker_lr or rate) if config.lora.train_marker else None
        model = attach_adapter(model, config.lora, marker_id, seed=config.seed)
    return model, row.describe(policy.marker, rate)


def _served_config(model_dir: Path) -> dict[str, object]:
    """Return the fields of the model's configuration that training changes and serving needs restored."""
    model = AutoConfig.from_pretrained(model_dir)
    dtype = {} if model.dtype is None else {"dtype": str(model.dtype).removeprefix("torch.")}
    return {**dtype, "use_cache": getattr(model, "use_cache", True)}
