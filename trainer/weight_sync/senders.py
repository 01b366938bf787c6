"""The trainer's side of vLLM's weight-transfer backends.

``gloo`` sends over TCP, from memory to memory, in a separate process group. ``nccl`` and ``ipc`` are vLLM's
own backends.
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

_TIMEOUT: Final = timedelta(minutes=30)
_POLL_S: Final = 0.05


class WeightSyncError(Exception):
    """New weights were not accepted; the message names the server and its answer."""


class GlooGroup:
    """A gloo process group in which rank 0 sends and the others receive.

    Args:
        host: address of rank 0.
        port: port that rank 0 listens on; 0 picks a free one.
        rank: rank of this process.
        size: number of processes.
    """

    def __init__(self, host: str, port: int, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._store = TCPStore(host, port, is_master=rank == 0, timeout=_TIMEOUT, wait_for_workers=False)
        self.port: int = self._store.port
        self._group: Any = None

    def join(self, check: Callable[[], None] = lambda: None) -> None:
        """Connect all processes. While rank 0 waits for the others, it calls ``check``, which may raise."""
        self._store.add("joined", 1)
        if self._rank == 0:
            _wait(lambda: self._store.add("joined", 0) == self._size, check)
        self._group = ProcessGroupGloo(PrefixStore("group", self._store), self._rank, self._size, _TIMEOUT)

    def broadcast(self, tensor: Tensor) -> Any:
        """Start to send or receive ``tensor`` (contiguous, on the CPU); return a handle to wait on."""
        # As bytes: gloo does not support every dtype.
        return self._group.broadcast(tensor.reshape(-1).view(torch.uint8), 0)

    def send(self, tensor: Tensor, check: Callable[[], None]) -> None:
        """Send ``tensor`` and wait until it is sent. Calls ``check`` while waiting, which may raise."""
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
    """Metadata of a tensor; same fields as vLLM's ``ParamMeta``."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightSource:
    """The tensors to send; implements vLLM's protocol of the same name.

    Set ``weights`` before each transfer, each storage once.
    """

    def __init__(self) -> None:
        self.weights: Mapping[str, Tensor] = {}

    def metadata(self) -> list[TensorInfo]:
        return [TensorInfo(name, weight.dtype, tuple(weight.shape)) for name, weight in self.weights.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.weights.items())

    def update_info(self) -> dict[str, list[object]]:
        """Return the metadata that workers need before the tensors arrive."""
        return {
            "names": list(self.weights),
            "dtype_names": [str(weight.dtype).removeprefix("torch.") for weight in self.weights.values()],
            "shapes": [list(weight.shape) for weight in self.weights.values()],
        }


TransferBackend = Literal["gloo", "nccl", "ipc"]


class TransferControl(Protocol):
    """Calls to vLLM around a transfer, as in vLLM's ``VLLMWeightSyncClient``. Each blocks until done."""

    def world_size(self) -> int:
        """Return the number of workers."""
        ...

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: Any) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class Sender(Protocol):
    """A connection to the workers."""

    def send_weights(self) -> None:
        """Send the tensors of the source; return when the workers use them."""
        ...


class GlooSender:
    """Sender to ``trainer.weight_sync.worker`` over TCP.

    Args:
        control: vLLM.
        source: the tensors to send.
        host: address of this process as seen by the workers.
        port: port to listen on; 0 picks a free one.

    Raises:
        WeightSyncError: the workers did not join.
    """

    def __init__(self, control: TransferControl, source: WeightSource, host: str, port: int = 0) -> None:
        self._control, self._source = control, source
        size = 1 + control.world_size()
        self._group = GlooGroup(host, port, 0, size)
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
            pool.shutdown(wait=False)  # after an error the workers may wait for tensors forever
        self._control.finish_weight_update()


def open_sender(
    backend: TransferBackend, control: TransferControl, source: WeightSource, host: str, port: int
) -> Sender:
    """Connect to the workers. ``nccl`` and ``ipc`` need vLLM installed next to the trainer.

    Raises:
        WeightSyncError: vLLM is missing, or the workers did not join.
    """
    if backend == "gloo":
        return GlooSender(control, source, host, port)
    try:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port
    except ModuleNotFoundError as error:
        raise WeightSyncError(
            f"weight_transfer {backend!r} needs vLLM next to the trainer: pip install 'ih-grpo[train,vllm]' "
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
    """Raise the workers' error if they failed already."""
    if future.done():
        future.result()
