"""The model and its forward passes: planned work in, logits out.

On a CPU, `Decoder` replaces transformers' forward pass of Qwen2 and Qwen3. A decoding step of a small model
spends a third of its time between the matrix products: module calls, norms of seven operations, rotations of
fourteen. The decoder needs fewer calls; the weights stay in the same modules, and attention is the same
function.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from service.engines.base import EngineError
from service.engines.execute_head import apply_execute_head, split_execute_head
from service.engines.model_config import count_parameters, head_dim
from service.engines.settings import TransformersSettings
from service.engines.transformers.attention import (
    NAME,
    Chunk,
    DecodeBatch,
    DecodeRows,
    KVCache,
    Step,
    attend,
)
from service.engines.transformers.lora import AdapterRows, attach, read_adapters
from service.engines.transformers.scheduler import Request, Work
from service.engines.transformers.weight_loading import (
    Weights,
    can_pack,
    pack_linears,
    resolve_dtype,
    unmap,
)

ARCHITECTURES: Final = frozenset({"qwen2", "qwen3"})
"""Values of ``model_type`` that `Decoder` computes."""

_Linear = Callable[[Tensor], Tensor]
_CALL: Final = 76_000
"""On a CPU, a call of attention takes about as long as this many numbers of a sequence's keys, counted once
per query head."""


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
    """The forward pass of ``model``, equal up to rounding. Create it after the layers were packed and
    wrapped.

    Args:
        model: a causal LM of one of the `ARCHITECTURES`, with SiLU activation.
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

    def forward(self, ids: Tensor, step: Step, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [S, H] and logits [S, V] of the tokens ``keep`` [S] among ``ids`` [T]."""
        x: Tensor = self._embed(ids)
        cos, sin = self._rotary(x[None], step.positions[None])
        half = self._width // 2
        # rotate_half(x) * sin equals x with its halves swapped, times:
        signed = torch.cat((-sin[0, :, None, :half], sin[0, :, None, half:]), dim=-1)
        cos = cos[0, :, None]
        for index, layer in enumerate(self._layers):
            h = self._rms(x, layer.input_norm)
            x = x + layer.o(self._attention(h, layer, index, step, cos, signed))
            h = self._rms(x, layer.mlp_norm)
            x = x + layer.down(F.silu(layer.gate(h)).mul_(layer.up(h)))
        hidden = self._rms(x[keep], self._norm)
        return hidden, self._head(hidden)

    def _attention(
        self, h: Tensor, layer: _Layer, index: int, step: Step, cos: Tensor, sin: Tensor
    ) -> Tensor:
        tokens = h.shape[0]
        # Each [T, heads, width].
        q, k, v = (linear(h).view(tokens, -1, self._width) for linear in (layer.q, layer.k, layer.v))
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


SMALL_MODEL = 50_000_000
"""Number of parameters below which one thread decodes as fast as several."""


class ModelRunner:
    """One causal LM on one device with its KV cache. Used by one thread, in inference mode.

    Raises:
        EngineError: the checkpoint is quantised, one of its layers does not use full causal attention, or an
        adapter can't be served.
    """

    def __init__(self, settings: TransformersSettings, config: PretrainedConfig, max_length: int) -> None:
        text_config = config.get_text_config()
        kinds = set(getattr(text_config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise EngineError(
                f"model {settings.model!r} has {', '.join(sorted(kinds))} layers; the embedded engine serves "
                "full attention only: use the vLLM engine"
            )
        if quantization := getattr(config, "quantization_config", None):
            raise EngineError(
                f"model {settings.model!r} is quantised ({quantization.get('quant_method')}): "
                "use the vLLM engine, or a GGUF file"
            )
        self.device = _device(settings.device)
        dtype = resolve_dtype(settings.dtype, self.device, count_parameters(config))
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=dtype, attn_implementation=NAME
        )
        self._model = model.to(self.device).eval().requires_grad_(False)
        self.dtype: torch.dtype = self._model.dtype
        self.is_small = sum(weight.numel() for weight in self._model.parameters()) < SMALL_MODEL
        self.vocab_size: int = self._model.get_input_embeddings().num_embeddings
        self._weights = Weights(self._model)
        self._adapter_rows = AdapterRows()
        adapters = read_adapters(settings.adapters, config, self.device, self.dtype)
        is_packed = can_pack(self.device, self.dtype)
        if is_packed:
            pack_linears(self._model)
        if self.device.type == "cpu":
            unmap(self._model)
        attach(self._model, adapters, self._adapter_rows)
        is_qwen = config.model_type in ARCHITECTURES and config.hidden_act == "silu"
        self._decoder = Decoder(self._model) if is_packed and is_qwen else None
        heads = text_config.num_attention_heads
        self._groups = heads // (getattr(text_config, "num_key_value_heads", None) or heads)
        self._call = _CALL // (heads * head_dim(text_config))
        self.cache = KVCache(settings.max_slots, max_length)
        self._execute_head: tuple[int, Tensor, Tensor] | None = None
        self._head_input = torch.empty(0)
        self._model.get_output_embeddings().register_forward_pre_hook(self._keep_head_input)

    def _keep_head_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        self._head_input = inputs[0]

    def set_execute_head(self, marker_id: int, weight: Tensor, bias: Tensor) -> None:
        """Let a second head decide about the marker; see `service.engines.execute_head`.

        Args:
            marker_id: id of the execute marker.
            weight: [H], float32.
            bias: a scalar.

        Raises:
            EngineError: the head belongs to a model of another width.
        """
        width = self._model.get_input_embeddings().embedding_dim
        if weight.shape != (width,):
            raise EngineError(f"execute head: the weight has shape {list(weight.shape)}, not [{width}]")
        self._execute_head = marker_id, weight.clone().to(self.device), bias.clone().to(self.device)

    def forward(self, plan: Sequence[Work]) -> tuple[list[Work], Tensor, list[tuple[Request, range, Tensor]]]:
        """Run one step.

        Returns:
            The work items whose requests get a token in this step, and their logits [len(works), V], float32.
            Then for each request that wants log-probabilities of its prompt: the positions, and their logits
            [positions, V], float32.
        """
        works = sorted(plan, key=lambda work: (work.stop - work.start > 1, work.slot.index))
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        ends: list[int] = []
        scored: list[tuple[Request, range, int]] = []
        for work in works:
            if wanted := work.request.scored_positions(work.start, work.stop):
                scored.append((work.request, wanted, len(ids)))
            ids += work.request.tokens[work.start : work.stop]
            slots += [work.slot.index] * (work.stop - work.start)
            positions += range(work.start, work.stop)
            ends.append(len(ids) - 1)
        self.cache.reserve(max(work.stop for work in works))
        self._adapter_rows.groups = self._rows_by_adapter(works)
        sampling = [(work, end) for work, end in zip(works, ends, strict=True) if work.samples]
        step = Step(
            self.cache,
            self._tensor(slots),
            self._tensor(positions),
            self._singles(works),
            self._chunks(works),
        )
        keep = [end for _, end in sampling]
        for _, wanted, first in scored:
            keep += range(first, first + len(wanted))
        hidden, logits = self._logits(self._tensor(ids), step, self._tensor(keep))
        logits = logits.float()
        if self._execute_head is not None:
            marker_id, weight, bias = self._execute_head
            temperatures = [work.request.sampling.temperature for work, _ in sampling]
            temperatures += [1.0] * (len(keep) - len(sampling))  # scores of a prompt have no temperature
            logits = apply_execute_head(logits, hidden.float() @ weight + bias, marker_id, temperatures)
        sizes = [len(sampling), *(len(wanted) for _, wanted, _ in scored)]
        own, *others = torch.split(logits, sizes)
        scores = [(request, wanted, rows) for (request, wanted, _), rows in zip(scored, others, strict=True)]
        return [work for work, _ in sampling], own, scores

    def _logits(self, ids: Tensor, step: Step, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [S, H] and logits [S, V] of the tokens ``keep`` [S] among ``ids`` [T]."""
        if self._decoder is not None:
            return self._decoder.forward(ids, step, keep)
        output = self._model(
            input_ids=ids[None],
            position_ids=step.positions[None],
            use_cache=False,
            logits_to_keep=keep,
            step=step,
        )
        return self._head_input.flatten(0, -2), output.logits[0]

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Copy new weights over the old ones. Changes nothing unless all of them fit. Adapters are kept. An
        execute head is replaced, or removed if there is none among the new weights.

        Raises:
            EngineError: names or shapes differ from the model's.
        """
        state, head = split_execute_head(state)
        self._weights.load(state)
        self._execute_head = None
        if head is not None:
            self.set_execute_head(*head)
        self.cache.clear()

    def _rows_by_adapter(self, works: Sequence[Work]) -> dict[str, Tensor]:
        rows: defaultdict[str, list[int]] = defaultdict(list)
        offset = 0
        for work in works:
            count = work.stop - work.start
            if (adapter := work.request.sampling.adapter) is not None:
                rows[adapter] += range(offset, offset + count)
            offset += count
        return {adapter: self._tensor(numbers) for adapter, numbers in rows.items()}

    def _singles(self, works: Sequence[Work]) -> DecodeBatch | DecodeRows | None:
        singles = [work for work in works if work.stop - work.start == 1]
        if not singles:
            return None
        rows = [work.slot.index for work in singles]
        first, span = rows[0], rows[-1] - rows[0] + 1
        length = self._aligned(max(work.stop for work in singles))
        batched = min(span, 2 * len(rows)) * length
        if self.device.type == "cpu" and sum(work.stop + self._call for work in singles) < batched:
            return DecodeRows(tuple((work.slot.index, work.stop) for work in singles))
        if span > 2 * len(rows):
            # Far apart: copying the rows is cheaper than attending to all rows between them.
            stops, selected, index = [work.stop for work in singles], len(rows), None
            selection: slice | Tensor = self._tensor(rows)
        else:
            stops, selected, selection = [1] * span, span, slice(first, first + span)
            for work in singles:
                stops[work.slot.index - first] = work.stop
            index = None if span == len(rows) else self._tensor([row - first for row in rows])
        mask = self._mask(self._tensor(stops)[:, None], length)[:, None, None]
        return DecodeBatch(len(rows), selection, selected, index, length, mask)

    def _chunks(self, works: Sequence[Work]) -> tuple[Chunk, ...]:
        chunks = []
        offset = 0
        for work in works:
            count = work.stop - work.start
            if count > 1:
                length = self._aligned(work.stop)
                stops = torch.arange(work.start + 1, work.stop + 1, device=self.device)
                mask = self._mask(stops.repeat(self._groups)[:, None], length)[None, None]
                chunks.append(Chunk(offset, offset + count, work.slot.index, length, mask))
            offset += count
        return tuple(chunks)

    def _mask(self, stops: Tensor, length: int) -> Tensor:
        """Additive mask [N, length]: row n sees the positions before ``stops`` [N, 1]."""
        hidden = torch.arange(length, device=self.device) >= stops
        return torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(
            hidden, -torch.inf
        )

    def _aligned(self, length: int) -> int:
        return min(length + 15 & ~15, self.cache.capacity)

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
