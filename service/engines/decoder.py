"""The forward pass of Qwen2 and Qwen3 in fewer calls than transformers makes, for a CPU.

A decoding step of a small model spends a third of its time between the products: module calls, norms of seven
operations, rotations of fourteen. Here the same modules hold the weights, and the same attention is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.engines.attention import Step, attend

ARCHITECTURES: Final = frozenset({"qwen2", "qwen3"})
"""Values of ``model_type`` that `Decoder` computes."""

_Linear = Callable[[Tensor], Tensor]


class _Layer(NamedTuple):
    input_norm: Tensor
    q: _Linear
    k: _Linear
    v: _Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: _Linear
    mlp_norm: Tensor
    gate: _Linear
    up: _Linear
    down: _Linear


class Decoder:
    """Computes what ``model`` does, up to rounding. Make it once its layers are packed and wrapped.

    Args:
        model: a causal LM of one of the `ARCHITECTURES` with the activation SiLU.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self._embed: nn.Module = model.model.embed_tokens
        self._rotary: nn.Module = model.model.rotary_emb
        self._norm: Tensor = model.model.norm.weight
        self._head: _Linear = model.lm_head.forward
        self._eps: float = config.rms_norm_eps
        self._width: int = model.model.layers[0].self_attn.head_dim
        self._scaling: float = model.model.layers[0].self_attn.scaling
        self._layers = [_layer(layer) for layer in model.model.layers]

    def forward(self, ids: Tensor, step: Step, keep: Tensor) -> Tensor:
        """Logits [S, V] of the tokens ``keep`` [S] among ``ids`` [T]."""
        x: Tensor = self._embed(ids)
        cos, sin = self._rotary(x[None], step.positions[None])
        half = self._width // 2
        # rotate_half(x) * sin is x with its halves swapped, times this:
        signed = torch.cat((-sin[0, :, None, :half], sin[0, :, None, half:]), dim=-1)
        cos = cos[0, :, None]
        for index, layer in enumerate(self._layers):
            h = self._rms(x, layer.input_norm)
            x = x + layer.o(self._attention(h, layer, index, step, cos, signed))
            h = self._rms(x, layer.mlp_norm)
            x = x + layer.down(F.silu(layer.gate(h)).mul_(layer.up(h)))
        return self._head(self._rms(x[keep], self._norm))

    def _attention(
        self, h: Tensor, layer: _Layer, index: int, step: Step, cos: Tensor, sin: Tensor
    ) -> Tensor:
        tokens = h.shape[0]
        q, k, v = (
            linear(h).view(tokens, -1, self._width) for linear in (layer.q, layer.k, layer.v)
        )  # [T, heads, width]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._rms(q, layer.q_norm), self._rms(k, layer.k_norm)
        both = torch.cat((q, k), dim=1)
        swapped = both.roll(self._width // 2, dims=-1)
        both = torch.addcmul(both * cos, swapped, sin)
        heads = q.shape[1]
        return attend(both[:, :heads], both[:, heads:], v, step, index, self._scaling).view(tokens, -1)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._eps)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    q_norm, k_norm = (None if norm is None else norm.weight for norm in norms)
    return _Layer(
        layer.input_layernorm.weight,
        attention.q_proj.forward,
        attention.k_proj.forward,
        attention.v_proj.forward,
        q_norm,
        k_norm,
        attention.o_proj.forward,
        layer.post_attention_layernorm.weight,
        mlp.gate_proj.forward,
        mlp.up_proj.forward,
        mlp.down_proj.forward,
    )
