"""Where a step's new weights go: into the engine of this process, or to servers elsewhere.

A model's whole weights, however training has wrapped and sharded it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from service.deferral.policy import DeferralPolicy
from trainer.training.checkpoints import staged

PATIENCE: Final = httpx.Timeout(1800.0, connect=10.0)
"""A server reads tens of GB from a shared file system."""
_BESIDE_WEIGHTS: Final = ("*.json", "*.jinja", "*.txt", "*.model")


class PushError(Exception):
    """A server did not take new weights; the message names it and what it said."""


class WeightSink(Protocol):
    """Takes the weights that the next rollout is sampled with."""

    async def push(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Rollout ``index`` is about to begin. After this, whatever is sampled is sampled with ``weights``.

        Raises:
            EngineError, PushError: the weights were not taken.
        """
        ...


class WeightTarget(Protocol):
    """A server that reads checkpoints from a file system that it shares with the trainer."""

    async def load(self, checkpoint: Path) -> None:
        """Raises PushError."""
        ...


class IHGRPOServer:
    """A server of ours, by ``POST /admin/reload``: episodes under way go on."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url, self._key = url, key

    async def load(self, checkpoint: Path) -> None:
        async with client_of(self._url, self._key) as client:
            await ask(client, "/admin/reload", {"model": str(checkpoint)})


class VLLMServer:
    """A vLLM server, through its routes for development (``VLLM_SERVER_DEV_MODE=1``).

    What is left of the last rollout there is aborted; its prefix cache is the old weights', and dropped.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self._url, self._key = url, key

    async def load(self, checkpoint: Path) -> None:
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(checkpoint)}}
        async with client_of(self._url, self._key) as client:
            await ask(client, "/pause?mode=abort")
            try:
                await ask(client, "/collective_rpc", reload)
                if not (await ask(client, "/reset_prefix_cache")).get("success"):
                    raise PushError(f"{self._url} could not drop its prefix cache")
            finally:
                await ask(client, "/resume")


class CheckpointSink:
    """Writes the weights as a whole checkpoint to a shared directory, and has every target load it.

    Of several processes the first does so; all wait. An embedded engine, where there is one, is loaded too.

    Args:
        directory: shared with the targets, under the same path. Holds one checkpoint at a time.
        model_dir: the checkpoint that training began with: its tokenizer and configuration go along.
        policy: as ``deferral.json``.
        targets: the servers.
    """

    def __init__(
        self, directory: Path, model_dir: Path, policy: DeferralPolicy, targets: Sequence[WeightTarget]
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


class EngineSink:
    """An engine of this process that takes weights from memory."""

    def __init__(self, engine: TakesWeights) -> None:
        self._engine = engine

    async def push(self, index: int, weights: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        await self._engine.load_weights(weights)


class TakesWeights(Protocol):
    """An engine that takes new weights."""

    async def load_weights(self, source: Mapping[str, Tensor]) -> None: ...


class BothSinks:
    """One after the other."""

    def __init__(self, *sinks: WeightSink) -> None:
        self._sinks = sinks

    async def push(self, index: int, weights: Mapping[str, Tensor]) -> None:
        for sink in self._sinks:
            await sink.push(index, weights)


def storable(
    weights: Mapping[str, Tensor], model_dir: Path, device: torch.device | None = None
) -> dict[str, Tensor]:
    """In the dtype that the model was released in, each storage once: a tied head has two names.

    Args:
        weights: by parameter name.
        model_dir: the model's.
        device: where they are to be; the CPU if not given.
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


def client_of(url: str, key: str | None) -> httpx.AsyncClient:
    """A client of a server that takes weights."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    base = url.rstrip("/").removesuffix("/v1")
    return httpx.AsyncClient(base_url=base, headers=headers, timeout=PATIENCE, trust_env=False)


async def ask(
    client: httpx.AsyncClient, path: str, body: Mapping[str, Any] | None = None, *, method: str = "POST"
) -> dict[str, Any]:
    """The JSON of the reply.

    Raises:
        PushError: it is a refusal, or there is none.
    """
    where = f"{client.base_url}".rstrip("/") + path
    try:
        response = await client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise PushError(f"{where}: {type(error).__name__} {error}") from error
    if response.is_error:
        hint = ""
        if response.status_code == 404 and "/admin/" not in where:
            hint = " (start vLLM with VLLM_SERVER_DEV_MODE=1)"
        raise PushError(f"{where} answered {response.status_code}{hint}: {response.text[:500]}")
    answer: dict[str, Any] = response.json() if response.content else {}
    return answer


@torch.no_grad()
def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """Tensors by parameter name, not copied where they are whole already.

    Sharded ones are gathered, so every process must call this at the same time.

    Args:
        model: unwrapped of DDP; FSDP2 leaves names as they are.
    """
    return {name: _whole(tensor) for name, tensor in model.state_dict().items()}


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach()
