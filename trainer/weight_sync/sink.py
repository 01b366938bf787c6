"""Each rollout's weights from the trainer's memory into vLLM's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from accelerate import PartialState
from torch import Tensor

from trainer.weight_sync.push import storable
from trainer.weight_sync.senders import Backend, Control, Sender, Source, open_sender


class Pausable(Control, Protocol):
    """Can be held while it takes weights."""

    version: str

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class TransferSink:
    """A `WeightSink`. After an error vLLM stays paused: its weights are of two rollouts.

    Args:
        backend: vLLM's, as it was started with.
        control: vLLM.
        model_dir: the checkpoint that training began with, whose dtype is sent.
        host: address of this process, as vLLM's workers see it.
        port: for them to connect to; 0 for any.
        shared: there is one vLLM for all training processes: the first of them sends, the others wait.
    """

    def __init__(
        self, backend: Backend, control: Pausable, model_dir: Path, *, host: str, port: int = 0, shared: bool
    ) -> None:
        self._backend = backend
        self._control = control
        self._model_dir = model_dir
        self._host, self._port = host, port
        self._processes = PartialState()
        self._shared = shared
        self._source = Source()
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
            self._sender = None  # the next try connects anew
            raise
        finally:
            self._source.weights = {}


def address_towards(url: str) -> str:
    """The address of this host on the network that leads to ``url``. Nothing is sent."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname or "127.0.0.1", parts.port or 80))
        address: str = probe.getsockname()[0]
    return address
