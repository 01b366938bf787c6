"""The trainer's side of vLLM's backends for weight transfer.

A trainer and the workers that it sends to: a gloo group of its own, beside any other of the processes.

What is sent: the weights of the rollout that is about to begin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

from trainer.weight_sync.push import PushError

PATIENCE: Final = timedelta(minutes=30)
_POLL_S: Final = 0.05


class Group:
    """Rank 0 sends, the others receive.

    Args:
        host: of rank 0.
        port: that rank 0 listens on; 0 lets it choose.
        rank: this process.
        size: of all.
    """

    def __init__(self, host: str, port: int, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._store = TCPStore(host, port, is_master=rank == 0, timeout=PATIENCE, wait_for_workers=False)
        self.port: int = self._store.port
        self._group: Any = None

    def join(self, check: Callable[[], None] = lambda: None) -> None:
        """Connect all. Rank 0 waits for the others, and calls ``check`` now and then, which may raise."""
        self._store.add("joined", 1)
        if self._rank == 0:
            _wait(lambda: self._store.add("joined", 0) == self._size, check)
        self._group = ProcessGroupGloo(PrefixStore("group", self._store), self._rank, self._size, PATIENCE)

    def broadcast(self, tensor: Tensor) -> Any:
        """Begin to send ``tensor`` (contiguous, on the CPU), or to receive into it; what to wait on."""
        # As bytes: gloo does not know every dtype.
        return self._group.broadcast(tensor.reshape(-1).view(torch.uint8), 0)

    def send(self, tensor: Tensor, check: Callable[[], None]) -> None:
        """Send it; ``check`` is called now and then, and may raise."""
        work = self.broadcast(tensor)
        _wait(work.is_completed, check)
        work.wait()


def _wait(done: Callable[[], bool], check: Callable[[], None]) -> None:
    pause = 0.0002
    while not done():
        check()
        time.sleep(pause)
        pause = min(2 * pause, _POLL_S)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """As vLLM's ``ParamMeta``."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Source:
    """A ``WeightSource`` of vLLM's (``vllm.distributed.weight_transfer``), which is structural.

    ``weights`` are set before each sending, each storage once.
    """

    def __init__(self) -> None:
        self.weights: Mapping[str, Tensor] = {}

    def metadata(self) -> list[TensorInfo]:
        return [TensorInfo(name, weight.dtype, tuple(weight.shape)) for name, weight in self.weights.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.weights.items())

    def update_info(self) -> dict[str, list[object]]:
        """What the workers are told before the tensors come."""
        return {
            "names": list(self.weights),
            "dtype_names": [str(weight.dtype).removeprefix("torch.") for weight in self.weights.values()],
            "shapes": [list(weight.shape) for weight in self.weights.values()],
        }


Backend = Literal["gloo", "nccl", "ipc"]


class Control(Protocol):
    """vLLM's side, told what to do: a ``VLLMWeightSyncClient`` of vLLM's. Each returns when it is done."""

    def world_size(self) -> int:
        """Workers in all."""
        ...

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: Any) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class Sender(Protocol):
    """Connected to the workers."""

    def send_weights(self) -> None:
        """Send what the source has, and return once the workers serve it."""
        ...


class GlooSender:
    """Sends to ``trainer.weight_sync.worker``, over TCP.

    Args:
        control: the workers' side.
        source: what to send.
        host: address of this process, as the workers see it.
        port: to listen on; 0 for any.

    Raises:
        PushError: the workers did not join.
    """

    def __init__(self, control: Control, source: Source, host: str, port: int = 0) -> None:
        self._control, self._source = control, source
        size = 1 + control.world_size()
        self._group = Group(host, port, 0, size)
        where = {"master_address": host, "master_port": self._group.port}
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(
                control.init_weight_transfer_engine, {**where, "rank_offset": 1, "world_size": size}
            )
            self._group.join(lambda: _no_failure(joining))
            joining.result()

    def send_weights(self) -> None:
        self._control.start_weight_update()
        pool = ThreadPoolExecutor(1)
        try:
            loading = pool.submit(self._control.update_weights, self._source.update_info())
            for _, weight in self._source:
                self._group.send(weight.cpu().contiguous(), lambda: _no_failure(loading))
            loading.result()
        finally:
            pool.shutdown(wait=False)  # after an error the workers may wait for tensors for ever
        self._control.finish_weight_update()


def open_sender(backend: Backend, control: Control, source: Source, host: str, port: int) -> Sender:
    """Connect to the workers. ``nccl`` and ``ipc`` are vLLM's own senders, which need vLLM installed here.

    Raises:
        PushError: vLLM is missing, or the workers did not join.
    """
    if backend == "gloo":
        return GlooSender(control, source, host, port)
    try:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port
    except ModuleNotFoundError as error:
        raise PushError(
            f"weight_transfer {backend!r} needs vLLM beside the trainer: pip install 'ih-grpo[train,vllm]' "
            f"({error})"
        ) from error
    info: Any
    if backend == "nccl":
        info = NCCLTrainerInitInfo(host, port or get_open_port(), 1 + control.world_size(), rank=0)
    else:
        info = IPCTrainerInitInfo(rank=0, packed=True)
    sender: Sender = WeightTransferTrainerFactory.trainer_init(info, client=control, source=source)
    return sender


def _no_failure(future: Future[None]) -> None:
    """Raises what the workers said, where they gave up before they were done."""
    if future.done():
        future.result()
