"""A trainer and the workers that it sends to: a gloo group of its own, beside any other of the processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

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
