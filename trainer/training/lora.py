"""LoRA with a trained marker row, on peft: attach, inspect, merge, save and load an adapter.

The adapter is kept in float32 over frozen weights of any type. peft's list form of
``trainable_token_indices`` keeps a tied LM head tied: one row serves both ends of the model. A model whose
head is separate gets a trained row in each.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import TrainableTokensWrapper
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from service.engines import adapters
from trainer.training.recipe_tables import LoraSettings

ADAPTER: Final = "default"
"""peft's name of the only adapter."""
DISTINCT_BELOW: Final = 0.99
"""A row whose cosine with an unused row is above this was never trained."""
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


class LoraError(ValueError):
    """An adapter can't be attached, saved or loaded; the message says why."""


@dataclass(frozen=True, slots=True)
class MarkerRow:
    """Comparison of the marker's row with the rows of unused ids."""

    unused: int
    """Rows that were compared."""
    cosine: float | None
    """Highest cosine with one of them; None without unused rows."""

    @property
    def is_distinct(self) -> bool:
        """Whether the row was trained, as far as can be seen."""
        return self.cosine is None or self.cosine < DISTINCT_BELOW

    def describe(self, marker: str, learning_rate: float | None) -> str:
        """A line for the log.

        Args:
            marker: the execute marker.
            learning_rate: of its row; None if it is not trained.
        """
        if self.cosine is None:
            found = "can't be compared with unused rows, since there are none"
        elif self.is_distinct:
            found = f"is distinct from {self.unused} unused rows (highest cosine {self.cosine:.3f})"
        else:
            found = f"equals an unused row (cosine {self.cosine:.5f}), so it was never trained"
        if learning_rate is not None:
            done = f"it is trained with learning rate {learning_rate:g}"
        elif self.is_distinct:
            done = "it stays as it is"
        else:
            done = "it stays as it is, so the model can't learn to write it: set lora.train_marker = true"
        return f"row of {marker}: {found}; {done}"


@torch.no_grad()
def inspect_marker_row(model: Any, marker_id: int, known_tokens: int) -> MarkerRow:
    """Compare the marker's row of the embedding with the rows behind the vocabulary.

    Args:
        model: a causal LM, with an adapter or without one.
        marker_id: id of the execute marker.
        known_tokens: ids that the tokenizer knows; models have more rows, a round number.
    """
    weight = base_weight(model.get_input_embeddings())
    unused = _whole(weight[known_tokens:]).float()
    if len(unused) == 0:
        return MarkerRow(0, None)
    row = _whole(weight[marker_id]).float()
    cosines = torch.nn.functional.cosine_similarity(unused, row[None])
    return MarkerRow(len(unused), float(cosines.max()))


def attach_adapter(model: Any, settings: LoraSettings, marker_id: int, *, seed: int = 0) -> PeftModel:
    """Wrap ``model`` with a new adapter, or with the one in ``settings.adapter``; freeze everything else.

    Args:
        model: a causal LM of transformers; changed in place.
        settings: the recipe's table.
        marker_id: id of the execute marker.
        seed: draws the first factors. The second are 0, so a new adapter changes nothing at first.

    Raises:
        LoraError: a target is unknown, the LM head would be adapted, or the adapter does not fit.
    """
    was_tied = bool(model.config.tie_word_embeddings)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied weights, which are checked below
        torch.manual_seed(seed)
        try:
            peft_model = get_peft_model(model, _peft_config(settings, marker_id, tied=was_tied))
        except (ValueError, KeyError) as error:
            raise LoraError(f"lora: {error}") from error
    base: Any = peft_model.get_base_model()
    if any(isinstance(module, LoraLayer) for module in base.get_output_embeddings().modules()):
        raise LoraError("lora.targets: the LM head can't be adapted: leave it out")
    if was_tied and not _is_tied(base):
        raise LoraError("lora: attaching the adapter untied the embedding from the LM head")
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if not (".lora_" in name or "trainable_tokens_delta" in name):
                raise LoraError(f"lora: {name} is trained, but is not part of the adapter")
    embedding = base.get_input_embeddings()
    if isinstance(embedding, TrainableTokensWrapper):
        _replace_rows_in_output(embedding)
    for module in (embedding, base.get_output_embeddings()):
        if isinstance(module, TrainableTokensWrapper):
            module.__class__ = _WithFrozenWeight
    peft_model.peft_config[ADAPTER].base_model_name_or_path = ""
    if settings.adapter is not None:
        load_adapter(peft_model, settings.adapter)
    return peft_model


def _peft_config(settings: LoraSettings, marker_id: int, *, tied: bool) -> LoraConfig:
    if settings.adapter is not None:
        try:
            config: Any = LoraConfig.from_pretrained(str(settings.adapter))
        except (OSError, ValueError) as error:
            raise LoraError(f"lora.adapter: {settings.adapter} can't be read: {error}") from error
        config.inference_mode = False
        assert isinstance(config, LoraConfig)  # noqa: S101 - that is the class it was read by
        return config
    rows: Any = None
    if settings.train_marker:
        rows = [marker_id] if tied else {"embed_tokens": [marker_id], "lm_head": [marker_id]}
    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.effective_alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        trainable_token_indices=rows,
        bias="none",
        task_type="CAUSAL_LM",
    )


class _WithFrozenWeight(TrainableTokensWrapper):
    """A wrapper whose ``weight`` is the frozen parameter.

    peft returns a new tensor with the trained rows in it. accelerate compares ``weight`` of embedding and LM
    head to find out whether they are tied, and shards tied ones together.
    """

    @property
    def weight(self) -> nn.Parameter:
        weight: nn.Parameter = self.original_module.weight
        return weight


def _is_tied(base: Any) -> bool:
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if base_weight(embedding).data_ptr() != base_weight(head).data_ptr():
        return False
    rows, head_rows = trained_rows(embedding), trained_rows(head)
    return rows is None or (head_rows is not None and rows[1] is head_rows[1])


def _replace_rows_in_output(embedding: Any) -> None:
    """Look tokens up in the frozen weight and replace the trained rows in the result.

    peft copies the whole weight in every forward pass, and its gradient in every backward pass.
    """
    layer = embedding.token_adapter

    def forward(ids: Tensor) -> Tensor:
        output: Tensor = layer.base_layer(ids)
        if layer.disable_adapters:
            return output
        for token, row in zip(
            layer.token_indices[ADAPTER], layer.trainable_tokens_delta[ADAPTER], strict=True
        ):
            output = torch.where((ids == token)[..., None], row.to(output.dtype), output)
        return output

    layer.forward = forward


def trained_rows(module: nn.Module) -> tuple[Sequence[int], Tensor] | None:
    """Ids and values [R, H] of the rows of an embedding or an LM head that the adapter replaces.

    None without an adapter, and while it is disabled.
    """
    if not isinstance(module, TrainableTokensWrapper) or module.token_adapter.disable_adapters:
        return None
    layer = module.token_adapter
    return layer.token_indices[ADAPTER], layer.trainable_tokens_delta[ADAPTER]


def base_weight(module: Any) -> Tensor:
    """The frozen weight of an embedding or an LM head."""
    weight: Tensor = (
        module.original_module.weight if isinstance(module, TrainableTokensWrapper) else module.weight
    )
    return weight


def parameter_groups(
    model: nn.Module, *, learning_rate: float, marker_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer: the factors, and the marker's row, which has no weight decay."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    factors = [p for name, p in named if "trainable_tokens_delta" not in name]
    rows = [p for name, p in named if "trainable_tokens_delta" in name]
    groups = [{"params": factors, "lr": learning_rate, "weight_decay": weight_decay}]
    if rows:
        groups.append({"params": rows, "lr": marker_lr, "weight_decay": 0.0})
    return groups


@torch.no_grad()
def merged_weights(model: PeftModel) -> dict[str, Tensor]:
    """The whole weights of the model with the adapter in them, by the base model's parameter names.

    Products are made in float32 and added before rounding to the base's type: each weight is rounded once.
    Weights that the adapter leaves alone are not copied, and a tied head stays the same tensor. Sharded
    weights are gathered, so every process must call this at the same time.
    """
    base: Any = model.get_base_model()
    modules = dict(base.named_modules())
    found: dict[str, Tensor] = {}
    shared: dict[int, Tensor] = {}
    for name, tensor in base.state_dict().items():
        if ".lora_" in name or "trainable_tokens_" in name:
            continue
        owner = name.rpartition(".")[0].removesuffix(".base_layer")
        plain = name.replace(".token_adapter", "").replace(".base_layer", "")
        whole = _whole(tensor)
        if owner.endswith(".token_adapter"):
            rows = trained_rows(modules[owner.removesuffix(".token_adapter")])
            if rows is not None:
                if whole.data_ptr() not in shared:
                    ids, values = rows
                    merged = whole.clone()
                    merged[torch.tensor(ids, device=merged.device)] = _whole(values).to(merged)
                    shared[whole.data_ptr()] = merged
                whole = shared[whole.data_ptr()]
        elif isinstance(module := modules.get(owner), LoraLayer) and name.endswith("base_layer.weight"):
            first, second = _whole(module.lora_A[ADAPTER].weight), _whole(module.lora_B[ADAPTER].weight)
            product = (second.float() @ first.float()) * module.scaling[ADAPTER]
            whole = (whole.float() + product).to(whole.dtype)
        found[plain] = whole
    return found


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach()


def save_adapter(
    model: PeftModel,
    directory: Path,
    *,
    base_name: str | None,
    fingerprint: str | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write ``adapter_config.json``, ``adapter_model.safetensors`` (float32) and ``base.json``.

    Args:
        model: with its adapter.
        directory: exists.
        base_name: hub id of the base model; None to name none, for servers that are given ``--base``.
        fingerprint: of the base's weights, see `service.engines.adapters.fingerprint`. A server then rejects
            any other base.
        state: the gathered state of a sharded model.
    """
    tensors = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    whole = {name: _whole(tensor).cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, directory / adapters.WEIGHTS, {"format": "pt"})
    config: Any = model.peft_config[ADAPTER]
    was = config.inference_mode, config.base_model_name_or_path
    config.inference_mode, config.base_model_name_or_path = True, base_name or ""
    try:
        config.save_pretrained(str(directory))
    finally:
        config.inference_mode, config.base_model_name_or_path = was
    if fingerprint is not None:
        adapters.BaseIdentity(fingerprint).save(directory)


def load_adapter(model: PeftModel, directory: Path) -> None:
    """Load the values of an adapter of the same shape.

    Raises:
        LoraError: a tensor is missing, unknown or of another shape, or the file can't be read.
    """
    try:
        stored = load_file(directory / adapters.WEIGHTS)
    except (OSError, ValueError) as error:
        raise LoraError(f"the adapter {directory} can't be read: {error}") from error
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    if differing := sorted(expected.keys() ^ stored.keys()):
        raise LoraError(f"the adapter {directory} does not fit the recipe: {differing[0]} has no counterpart")
    for name, tensor in stored.items():
        if expected[name].shape != tensor.shape:
            raise LoraError(
                f"the adapter {directory} does not fit the recipe: {name} is {list(tensor.shape)}, "
                f"{list(expected[name].shape)} was expected"
            )
    set_peft_model_state_dict(model, dict(stored))


def base_name(settings: LoraSettings, model: str) -> str | None:
    """Name of the base model to write into an adapter: never a path.

    Args:
        settings: the recipe's table.
        model: as the recipe names it, a directory or a hub id.
    """
    if settings.base_name is not None:
        return settings.base_name
    return model if _HUB_ID.fullmatch(model) and not Path(model).exists() else None


class ReferencePolicy:
    """The adapter's values at the start of the run, which may be put in place for a forward pass.

    With a new adapter that is the frozen model itself. The model may be sharded later: FSDP2 replaces the
    parameters of its modules, so they are looked up by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._values = {name: p.detach().clone() for name, p in _trained(model).items()}

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Let the model be the reference inside. Only without gradients, before the policy's own pass."""
        _reshard(self._model)
        parameters = _trained(self._model)
        current = {name: p.detach().clone() for name, p in parameters.items()}
        self._values = {name: _sharded_like(p, self._values[name]) for name, p in parameters.items()}
        _copy(self._values, parameters)
        try:
            yield
        finally:
            _reshard(self._model)
            _copy(current, parameters)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name, without the prefixes of wrappers inside the model."""
    return {
        name.replace("_checkpoint_wrapped_module.", ""): p
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def _reshard(model: nn.Module) -> None:
    """Free gathered weights of FSDP2, so that the next forward pass gathers the current ones."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _sharded_like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """``value`` on the device of ``parameter``, divided over the processes in the same way."""
    if isinstance(value, DTensor) or not isinstance(parameter, DTensor):
        return value.to(parameter.device)
    whole = value.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements)


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
