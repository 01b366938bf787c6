"""Weight sinks: destinations of each rollout's new weights."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from service.deferral.policy import DeferralPolicy
from trainer.training.checkpoints import staged
from trainer.weight_sync.senders import Sender, TransferBackend, TransferControl, WeightSource, open_sender
from trainer.weight_sync.servers import ReloadTarget

_BESIDE_WEIGHTS: Final = ("*.json", "*.jinja", "*.txt", "*.model")


class WeightSink(Protocol):
    """A destination for the weights that the next rollout is sampled with."""

    async def push(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Deliver the weights of rollout ``index``. Everything sampled after this uses ``weights``.

        Raises:
            EngineError, WeightSyncError: the weights were not accepted.
        """
        ...


class WeightLoader(Protocol):
    """An engine that can load new weights."""

    async def load_weights(self, source: Mapping[str, Tensor], *, version: int = 0) -> None: ...


class EngineSink:
    """Sink for an engine of this process, which reads the weights from memory."""

    def __init__(self, engine: WeightLoader) -> None:
        self._engine = engine

    async def push(self, index: int, weights: Mapping[str, Tensor]) -> None:
        await self._engine.load_weights(weights, version=index)


class SinkChain:
    """Several sinks, one after another."""

    def __init__(self, *sinks: WeightSink) -> None:
        self._sinks = sinks

    async def push(self, index: int, weights: Mapping[str, Tensor]) -> None:
        for sink in self._sinks:
            await sink.push(index, weights)


class CheckpointSink:
    """Sink that writes a checkpoint to a shared directory and lets every target load it.

    With several training processes the main one writes, and the others wait.

    Args:
        directory: shared with the targets under the same path. Contains one checkpoint at a time.
        model_dir: the checkpoint that training started from; its tokenizer and configuration are copied.
        policy: written as ``deferral.json``.
        targets: the servers.
    """

    def __init__(
        self, directory: Path, model_dir: Path, policy: DeferralPolicy, targets: Sequence[ReloadTarget]
    ) -> None:
        self._directory = directory
        self._model_dir = model_dir
        self._policy = policy
        self._targets = targets
        self._processes = PartialState()

    async def push(self, index: int, weights: Mapping[str, Tensor]) -> None:
        if self._processes.is_main_process:
            path = await asyncio.to_thread(self._write, index, weights)
            await asyncio.gather(*(target.load(path) for target in self._targets))
        await asyncio.to_thread(self._processes.wait_for_everyone)

    def _write(self, index: int, weights: Mapping[str, Tensor]) -> Path:
        final = (self._directory / f"weights-{index:06}").resolve()
        for old in self._directory.glob("weights-*"):
            shutil.rmtree(old)
        with staged(final) as staging:
            for pattern in _BESIDE_WEIGHTS:
                for path in self._model_dir.glob(pattern):
                    if not path.name.endswith(".index.json"):
                        shutil.copyfile(path, staging / path.name)
            self._policy.save(staging)
            save_file(storable(weights, self._model_dir), staging / "model.safetensors", {"format": "pt"})
        return final


class PausableControl(TransferControl, Protocol):
    """A vLLM engine that can be paused while it receives weights."""

    version: str

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class TransferSink:
    """Sink that sends weights from memory to vLLM.

    After an error vLLM stays paused, because its weights may be a mix of two rollouts.

    Args:
        backend: the weight-transfer backend that vLLM was started with.
        control: vLLM.
        model_dir: the checkpoint that training started from; weights are sent in its dtype.
        host: address of this process as seen by vLLM's workers.
        port: port for them to connect to; 0 picks a free one.
        shared: all training processes share one vLLM: the main process sends, the others wait.
    """

    def __init__(
        self,
        backend: TransferBackend,
        control: PausableControl,
        model_dir: Path,
        *,
        host: str,
        port: int = 0,
        shared: bool,
    ) -> None:
        self._backend = backend
        self._control = control
        self._model_dir = model_dir
        self._host, self._port = host, port
        self._processes = PartialState()
        self._shared = shared
        self._source = WeightSource()
        self._sender: Sender | None = None

    async def push(self, index: int, weights: Mapping[str, Tensor]) -> None:
        if not self._shared or self._processes.is_main_process:
            await asyncio.to_thread(self._send, index, weights)
        if self._shared:
            await asyncio.to_thread(self._processes.wait_for_everyone)

    def _send(self, index: int, weights: Mapping[str, Tensor]) -> None:
        device = None if self._backend == "gloo" else self._processes.device
        self._source.weights = storable(weights, self._model_dir, device)
        try:
            self._control.pause()
            if self._sender is None:
                self._sender = open_sender(self._backend, self._control, self._source, self._host, self._port)
            self._control.version = f"rollout-{index}"
            self._sender.send_weights()
            self._control.resume()
        except BaseException:
            self._sender = None  # the next attempt opens a new connection
            raise
        finally:
            self._source.weights = {}


def address_towards(url: str) -> str:
    """Return the address of this host on the network that leads to ``url``. Sends nothing."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname or "127.0.0.1", parts.port or 80))
        address: str = probe.getsockname()[0]
    return address


def storable(
    weights: Mapping[str, Tensor], model_dir: Path, device: torch.device | None = None
) -> dict[str, Tensor]:
    """Return the weights in the dtype of the released model, each storage once (a tied head has two names).

    Args:
        weights: by parameter name.
        model_dir: directory of the released model.
        device: target device. Default: the CPU.
    """
    config: dict[str, Any] = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype: torch.dtype = getattr(torch, name)
    seen: set[int] = set()
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.data_ptr() not in seen:
            seen.add(weight.data_ptr())
            stored[name] = weight.to(device or "cpu", dtype).contiguous()
    return stored


@torch.no_grad()
def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the full tensors by parameter name. Tensors that are not sharded are not copied.

    Sharded tensors are gathered, so every process must call this at the same time.

    Args:
        model: unwrapped from DDP; FSDP2 does not change names.
    """
    return {name: _gathered(tensor) for name, tensor in model.state_dict().items()}


def _gathered(tensor: Any) -> Tensor:
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach()
