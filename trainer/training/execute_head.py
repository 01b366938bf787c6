"""The execute head of EH-GRPO in training: start near the marker's probability, save and load.

The explicit two-level policy decides with a linear head on the last hidden state, while the model decides
with the marker's share of the softmax over the whole vocabulary. The logit of that share is not linear in the
hidden state, so the head is fitted to it on the tokens of some episodes: a logistic regression with the share
as the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from service.engines.base import Tokenizer
from service.engines.checkpoint import CheckpointError
from service.engines.execute_head import FILE_NAME, ExecuteHead
from trainer.training.chunked_lm_head import ExecuteHeadModule, token_statistics
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.episodes import Sample
from trainer.training.lora import base_weight, trained_rows

EPISODES: Final = 32
"""Episodes that a new head is fitted on."""
_MAX_TOKENS: Final = 20_000
_RIDGE: Final = 1e-3
_FITTING_STEPS: Final = 200


def has_saved_head(directory: Path) -> bool:
    """Whether a checkpoint already has an execute head."""
    return (directory / FILE_NAME).is_file()


def find_execute_head(model: Any) -> ExecuteHeadModule | None:
    """Return the execute head of a model, with an adapter or without one; None if it has none."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    head = getattr(base, "execute_head", None)
    return head if isinstance(head, ExecuteHeadModule) else None


def attach_execute_head(
    model: Any,
    marker: str,
    tokenizer: Tokenizer,
    start: Path,
    episodes: Sequence[Sample],
    config: TrainConfig,
) -> str:
    """Add a trainable execute head to ``model``, and return a line for the log.

    Args:
        model: a causal LM, with an adapter or without one; changed in place.
        marker: the execute marker.
        tokenizer: of the model.
        start: directory of the checkpoint that training starts from. Its head is loaded if it has one.
        episodes: sampled from ``model`` as it is, to fit a new head on. Unused if ``start`` has a head.
        config: the run.

    Raises:
        ConfigError: the head in ``start`` does not fit the model, or the episodes have no tokens.
    """
    marker_id = tokenizer.token_id(marker)
    assert marker_id is not None  # noqa: S101 - the training set was loaded with this tokenizer
    base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    embedding = base.get_input_embeddings()  # type: ignore[operator]
    head = ExecuteHeadModule(base_weight(embedding).shape[1], marker_id)
    description = "execute head: from the checkpoint"
    if has_saved_head(start):
        _set(head, ExecuteHead.load(start), start)
    else:
        description = _fit(head, base, marker_id, episodes, config)
    base.add_module("execute_head", head.to(next(base.parameters()).device))
    return description


@torch.no_grad()
def _fit(
    head: ExecuteHeadModule,
    model: nn.Module,
    marker_id: int,
    episodes: Sequence[Sample],
    config: TrainConfig,
) -> str:
    """Fit ``head`` to the marker's probability at the sampled tokens of ``episodes``."""
    device = next(model.parameters()).device
    parts: list[tuple[Tensor, Tensor]] = []
    for sample in episodes:
        if any(sample.sampled) and sum(len(shares) for _, shares in parts) < _MAX_TOKENS:
            parts.append(_features(model, sample, marker_id, config.temperature, device))
    if not parts:
        raise ConfigError("execute_head: no episode has a token to fit the head on")
    hidden, shares = (torch.cat([part[index] for part in parts]).double() for index in (0, 1))
    mean, scale = hidden.mean(0), hidden.std(0, correction=0).clamp(min=1e-6)
    features = (hidden - mean) / scale
    weight = torch.zeros(hidden.shape[1], dtype=torch.float64, requires_grad=True)
    start = shares.mean().clamp(1e-6, 1 - 1e-6).logit()
    bias = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_FITTING_STEPS, line_search_fn="strong_wolfe")

    @torch.enable_grad()
    def loss() -> Tensor:
        optimizer.zero_grad()
        fitted = F.binary_cross_entropy_with_logits(features @ weight + bias, shares)
        total: Tensor = fitted + _RIDGE * weight.square().mean()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    # The head's logit is divided by the temperature, and its input is not normalised.
    plain = weight / scale * config.temperature
    head.weight.copy_(plain)
    head.bias.copy_(bias * config.temperature - mean @ plain)
    found = (features @ weight + bias).sigmoid()
    error = float((found - shares).abs().mean())
    return (
        f"execute head: fitted on {len(shares):,} tokens; mean probability of the marker "
        f"{float(found.mean()):.4f} (before {float(shares.mean()):.4f}), mean difference {error:.4f}"
    )


def _features(
    model: nn.Module, sample: Sample, marker_id: int, temperature: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return hidden states [N, H] and the marker's probability [N] at the sampled tokens, on the CPU."""
    ids = torch.tensor([[*sample.prompt_ids, *sample.ids]], device=device)
    targets = torch.tensor([[0] * len(sample.prompt_ids) + list(sample.sampled)], device=device).bool()
    causal: Any = model
    states = causal.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    chosen = targets[:, 1:]
    hidden = states[:, :-1][chosen]
    lm_head = causal.get_output_embeddings()
    row_ids, rows = trained_rows(lm_head) or ((), None)
    statistics = token_statistics(
        hidden,
        base_weight(lm_head),
        ids[:, 1:][chosen],
        marker_id,
        temperature=temperature,
        row_ids=row_ids,
        rows=rows,
    )
    return hidden.float().cpu(), statistics.execute_log_probs.exp().cpu()


def save_execute_head(head: ExecuteHeadModule, marker: str, directory: Path) -> None:
    """Write ``execute_head.json``; every float32 value is exact."""
    weight = head.weight.detach().float().cpu().tolist()
    ExecuteHead(marker, tuple(weight), float(head.bias.detach())).save(directory)


def save_start_head(model: Any, marker: str, run_dir: Path) -> None:
    """Write the head that a run starts from, so that a resumed run has the same reference policy."""
    head = find_execute_head(model)
    assert head is not None  # noqa: S101 - attached before
    save_execute_head(head, marker, run_dir)


def load_execute_head(head: ExecuteHeadModule, directory: Path) -> None:
    """Load ``execute_head.json`` into ``head``.

    Raises:
        CheckpointError: the file is missing.
        ConfigError: the head does not fit the model.
    """
    if not has_saved_head(directory):
        raise CheckpointError(f"{directory} has no {FILE_NAME}: remove it, or use another run_dir")
    _set(head, ExecuteHead.load(directory), directory)


@torch.no_grad()
def _set(head: ExecuteHeadModule, values: ExecuteHead | None, directory: Path) -> None:
    if values is None or len(values.weight) != len(head.weight):
        raise ConfigError(f"execute_head: the head in {directory} belongs to another model")
    head.weight.copy_(torch.tensor(values.weight))
    head.bias.copy_(torch.tensor(values.bias))
