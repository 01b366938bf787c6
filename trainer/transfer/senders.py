"""The trainer's side of vLLM's backends for weight transfer."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol

from trainer.push import PushError
from trainer.transfer.group import Group
from trainer.transfer.source import Source

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
    """Sends to ``trainer.transfer.worker``, over TCP.

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
