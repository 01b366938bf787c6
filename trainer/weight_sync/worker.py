"""The worker's side of the ``gloo`` weight transfer: a vLLM backend that receives weights over TCP.

Works on CPUs and GPUs. If this project is installed next to vLLM, vLLM finds the backend through the entry
point ``vllm.general_plugins``: ``vllm serve ... --weight-transfer-config '{"backend": "gloo"}'``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from trainer.weight_sync.senders import GlooGroup


@dataclass
class GlooInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Address of the trainer, and the first rank of this server's workers."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Metadata of the tensors of one update, in the order in which they are sent."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):  # type: ignore[misc]
    """Receiver of tensors in checkpoint layout. The model's loader shards and packs them."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    _group: GlooGroup | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the trainer's group."""
        parallel = self.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + parallel.rank + init_info.rank_offset
        self._group = GlooGroup(init_info.master_address, init_info.master_port, rank, init_info.world_size)
        self._group.join()

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load the tensors one by one."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        if self._group is None:
            raise RuntimeError("not connected to the trainer: call init_weight_transfer_engine first")
        for name, dtype, shape in zip(
            update_info.names, update_info.dtype_names, update_info.shapes, strict=True
        ):
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            self._group.broadcast(weight).wait()
            self.model.load_weights([(name, weight.to(self.device))])

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack(self.model)

    def shutdown(self) -> None:
        self._group = None


def repack(model: torch.nn.Module) -> None:
    """Pack the weights of embeddings and heads for the CPU again.

    On the CPU vLLM multiplies by a packed copy of the weights. A head that is tied to the embedding has no
    weight of its own in a checkpoint, so vLLM 0.32 does not repack it after a reload and would keep using the
    old copy.
    """
    layer: Any
    for layer in model.modules():
        # Other layers keep only the packed copy, which was made when they were loaded.
        if hasattr(layer, "cpu_linear") and layer.weight.ndim == 2:
            layer.quant_method.process_weights_after_loading(layer)
