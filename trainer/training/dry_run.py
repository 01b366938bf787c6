"""Summary of a run and estimate of its memory, for ``--dry-run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PretrainedConfig

from service.deferral.policy import DeferralPolicy
from service.engines.adapters import BASE, check_base, fingerprint, is_adapter
from service.engines.model_config import count_parameters, head_dim, without_weights
from service.engines.model_lookup import locate
from service.engines.tokenizer import HFTokenizer
from trainer.data.problems import ProblemStream
from trainer.environments.tools import prompt_section
from trainer.rewards.registry import RewardSet
from trainer.training.checkpoints import check_resumable, latest
from trainer.training.chunked_lm_head import MAX_TILE_ELEMENTS
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.recipe_tables import LoraSettings
from trainer.training.reporters import check_reporters
from trainer.training.setup import TrainingSet, load_training_set
from trainer.training.validation import ValidationSet, load_validation_set

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimated bytes on one process, with episodes of the maximum length that the policy allows."""

    weights_and_optimizer: int
    """float32 weights, gradients and AdamW's two moments: 16 bytes per trained parameter. Frozen weights, of
    an adapter's base or of the reference of the KL term, in the dtype of the forward pass. Unless the weights
    are sharded or an adapter is trained: autocast's copy of the weights in that dtype, if it is bfloat16."""
    activations: int
    """Activations of one micro-batch, see ``activation_bytes``. With gradient checkpointing: those of one
    layer, and the inputs of all layers."""
    head: int
    """Two tiles of logits and the gradient of the head's weight."""
    engine_weights: int
    """0 if servers or Ray actors generate."""
    kv_cache: int
    """KV cache with all slots of the engine at full length."""
    gathered: int = 0
    """Temporary full float32 weights before each rollout, if training keeps them sharded."""

    @property
    def total(self) -> int:
        """Peak: the gathered weights are freed before activations are allocated."""
        fixed = self.weights_and_optimizer + self.engine_weights + self.kv_cache
        return fixed + max(self.activations + self.head, self.gathered)


def count_adapter_parameters(config: PretrainedConfig, lora: LoraSettings) -> int:
    """Return the number of parameters of an adapter. Creates no weights."""
    model: Any = without_weights(config)
    head = model.get_output_embeddings()
    linear = [
        (name.rpartition(".")[2], module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    adapted = [module for name, module in linear if lora.targets == "all-linear" or name in lora.targets]
    factors = sum(lora.rank * (module.in_features + module.out_features) for module in adapted)
    rows = 0 if not lora.train_marker else 1 if config.tie_word_embeddings else 2
    return factors + rows * int(head.in_features)


def activation_bytes(text: Any, size: int) -> int:
    """Return the bytes that a layer stores per token for the backward pass.

    The numbers were fitted to the tensors that the layers of Qwen3 store, with errors below 1 %. Qwen2 has no
    norms of queries and keys, and stores a fifth less. The norms compute in float32 in any case.

    Args:
        text: configuration of the language model.
        size: bytes of a number in the forward pass, 2 or 4.
    """
    heads = text.num_attention_heads * head_dim(text)
    kv_heads = text.num_key_value_heads * head_dim(text)
    mlp = 4 * size * text.intermediate_size
    return int(mlp + 30 * text.hidden_size + 5 * (size + 1) * heads + (1.5 * size + 4) * kv_heads)


def estimate_memory(
    config: TrainConfig, model: PretrainedConfig, policy: DeferralPolicy, *, gpu: bool, shards: int = 1
) -> Memory:
    """Estimate the memory of one process. Real use differs by about 20 % (allocators, shorter episodes).

    Args:
        config: the run.
        model: configuration of the model.
        policy: limits the length of an episode.
        gpu: True if the engine runs on a GPU.
        shards: processes that share weights, gradients and optimiser state (FSDP2).
    """
    text: Any = model.get_text_config()
    parameters = count_parameters(model)
    train_bytes = 2 if config.dtype == "bfloat16" else 4
    lora = config.lora
    trained = parameters if lora is None else count_adapter_parameters(model, lora)
    # The reference of an adapter is the adapter's own start.
    frozen = parameters if lora is not None or config.kl_weight else 0
    head_gradient = 4 * text.vocab_size * text.hidden_size if lora is None else 0
    engine_bytes = 4 if config.engine_dtype == "float32" or (config.engine_dtype == "auto" and not gpu) else 2
    length = min(policy.max_episode_tokens, text.max_position_embeddings)
    layers, layer = text.num_hidden_layers, activation_bytes(text, train_bytes)
    # The residual stream has the dtype of the embedding.
    inputs = text.hidden_size * (4 if lora is None else train_bytes)
    stored = layer + layers * inputs if config.gradient_checkpointing else layers * layer
    copies = 2 * parameters if lora is None and train_bytes == 2 and shards == 1 else 0
    remote = bool(config.generation_urls) or config.ray is not None
    kv_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim(text) * engine_bytes
    return Memory(
        weights_and_optimizer=(16 * trained + train_bytes * frozen) // shards + copies,
        activations=config.micro_batch_samples * length * stored,
        head=2 * 4 * MAX_TILE_ELEMENTS + head_gradient,
        engine_weights=0 if remote else engine_bytes * parameters,
        kv_cache=0 if remote else config.engine_slots * length * kv_token,
        gathered=4 * parameters if shards > 1 else 0,
    )


def describe_run(config: TrainConfig, console: Console, *, shards: int = 1) -> None:
    """Print a summary of the run, for ``shards`` processes under FSDP2.

    Reads tokenizer, configuration and problems. Weights are read only to compare their fingerprint with that
    of an adapter's base or of the run's start.

    Raises:
        ConfigError, DataError, CheckpointError, ValueError: the run would not start; the message gives the
            reason.
    """
    RewardSet(config.rewards)  # imports the user's rewards
    model_dir = locate(config.model, weights=False, base=config.base)
    note = _compare_base(config, model_dir)
    policy = config.resolve_policy(model_dir)
    model = AutoConfig.from_pretrained(model_dir)
    check_reporters(config)
    tokenizer = HFTokenizer(str(model_dir))
    tools = prompt_section(config.tools)
    data = load_training_set(config, tokenizer, policy, tools)
    held_out = load_validation_set(config, tokenizer, policy, data, tools)
    if config.run_dir.exists() and not config.run_dir.is_dir():
        raise ConfigError(f"run_dir: {config.run_dir} is a file: choose a directory")
    checkpoint = latest(config.run_dir / "checkpoints")
    if checkpoint:
        compared = config.uses_base_weights and _has_weights(model_dir) and not _is_adapter(config.model)
        base = fingerprint(model_dir) if compared else None
        problems = ProblemStream(data.problems, seed=config.seed).fingerprint
        check_resumable(checkpoint, config, problems, base)
    gpu = config.device != "cpu" and torch.cuda.is_available()
    memory = estimate_memory(config, model, policy, gpu=gpu, shards=shards)
    console.print(_summary(config, model_dir, policy, model, data, held_out, checkpoint))
    console.print(_memory_table(memory, shards))
    if note:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _compare_base(config: TrainConfig, model_dir: Path) -> str | None:
    """Compare the adapter with the base model, as the run does. Return a note if that is not possible.

    Raises:
        ValueError: the adapter was trained on another model.
    """
    adapter = config.lora.adapter if config.lora is not None else None
    if adapter is None and _is_adapter(config.model):
        adapter = Path(config.model).expanduser()
    if adapter is None or not (adapter / BASE).is_file():
        return None
    if not _has_weights(model_dir):
        return (
            f"the weights of {model_dir} are not downloaded, so they were not compared with {adapter / BASE}"
        )
    check_base(adapter, model_dir)
    return None


def _has_weights(model_dir: Path) -> bool:
    return any(model_dir.glob("*.safetensors"))


def _is_adapter(model: str) -> bool:
    return is_adapter(Path(model).expanduser())


def _summary(
    config: TrainConfig,
    model_dir: Path,
    policy: DeferralPolicy,
    model: PretrainedConfig,
    data: TrainingSet,
    held_out: ValidationSet | None,
    checkpoint: Path | None,
) -> Table:
    table = Table(title="Run", show_header=False)
    weight = config.effective_hierarchy_weight
    for name, value in (
        ("method", f"{config.method}, hierarchy weight {weight}"),
        ("model", f"{model_dir}, {count_parameters(model) / 1e6:,.1f} M parameters"),
        ("trained", _trained(config, model)),
        ("starts from", str(checkpoint or "the weights of the model")),
        ("data", str(data)),
        *([] if data.overlaps is None else [("contamination", str(data.overlaps))]),
        ("validation", _describe_validation(config, held_out)),
        ("rewards", ", ".join(f"{spec.weight:g} x {spec.name}" for spec in config.rewards)),
        (
            "rollout",
            f"up to {config.draws_per_rollout} prompts x {config.group_size} samples, "
            f"{config.prompts_per_step} groups kept",
        ),
        (
            "episode",
            f"up to {policy.max_turns} turns, {policy.max_episode_tokens} tokens, "
            f"{policy.run_limit_s:g} s per flush; code runs at "
            f"{'every block' if policy.mode == 'immediate' else 'the marker'}",
        ),
        (
            "steps",
            f"{config.steps}, each of {config.mini_batch} samples in passes of {config.micro_batch_samples}",
        ),
        ("optimiser", f"AdamW, learning rate {config.learning_rate:g} ({config.lr_schedule})"),
        ("sandbox", config.sandbox),
        *([("tools", ", ".join(map(str, config.tools)))] if config.tools else []),
        (
            "output",
            f"{config.run_dir}: a checkpoint every {config.save_every} steps, {config.keep_checkpoints} and "
            f"the best one kept",
        ),
    ):
        table.add_row(name, value)
    return table


def _describe_validation(config: TrainConfig, held_out: ValidationSet | None) -> str:
    if config.validation is None or held_out is None:
        return "none"
    return f"{held_out}, {config.validation.samples} samples each, every {config.validation.every} steps"


def _trained(config: TrainConfig, model: PretrainedConfig) -> str:
    if config.lora is None:
        return "all weights"
    if config.lora.adapter is not None:
        return f"the adapter {config.lora.adapter}"
    count = count_adapter_parameters(model, config.lora)
    return f"an adapter of rank {config.lora.rank}, {count / 1e6:,.2f} M parameters"


def _memory_table(memory: Memory, shards: int) -> Table:
    where = "on one process" if shards == 1 else f"on each of {shards} processes under FSDP2"
    table = Table(title=f"Estimated memory {where}", show_header=False)
    for name, size in (
        ("weights, gradients, optimiser", memory.weights_and_optimizer),
        ("activations", memory.activations),
        ("LM head", memory.head),
        ("engine: weights", memory.engine_weights),
        ("engine: KV cache with all slots full", memory.kv_cache),
        ("gathered weights before a rollout", memory.gathered),
        ("peak", memory.total),
    ):
        table.add_row(name, f"{size / GIB:,.2f} GiB")
    return table
