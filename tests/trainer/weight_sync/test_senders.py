"""Weight transfer over gloo, with workers in threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.weight_sync.senders import GlooGroup, GlooSender, WeightSource, WeightSyncError, open_sender


class Workers:
    """Fake of vLLM's workers. ``trouble`` names the step that fails."""

    def __init__(self, count: int, trouble: str = "") -> None:
        self._count, self._trouble = count, trouble
        self.groups: dict[int, GlooGroup] = {}
        self.received: dict[int, dict[str, Tensor]] = {}
        self.steps: list[str] = []

    def world_size(self) -> int:
        return self._count

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._step("init")

        def join(rank: int) -> None:
            host, port = init_info["master_address"], init_info["master_port"]
            self.groups[rank] = GlooGroup(host, port, rank, init_info["world_size"])
            self.groups[rank].join()

        self._all(join)

    def start_weight_update(self) -> None:
        self._step("start")

    def update_weights(self, update_info: Any) -> None:
        self._step("update")

        def receive(rank: int) -> None:
            self.received[rank] = {}
            for name, dtype, shape in zip(*update_info.values(), strict=True):
                weight = torch.empty(shape, dtype=getattr(torch, dtype))
                self.groups[rank].broadcast(weight).wait()
                self.received[rank][name] = weight

        self._all(receive)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._step("finish")

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name == self._trouble:
            raise WeightSyncError(f"the workers can't {name}")

    def _all(self, act: Any) -> None:
        threads = [threading.Thread(target=act, args=(rank,)) for rank in range(1, self._count + 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def weights(seed: int) -> Mapping[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "embed": torch.randn(50, 8),
        "norm": torch.randn(8, dtype=torch.bfloat16),
        "head.T": torch.randn(8, 50).T,  # not contiguous
        "step": torch.tensor(seed),
    }


def test_every_worker_receives_every_tensor() -> None:
    workers, source = Workers(2), WeightSource()
    sender = GlooSender(workers, source, "127.0.0.1")
    for seed in (0, 1):
        source.weights = weights(seed)
        sender.send_weights()
        for received in workers.received.values():
            torch.testing.assert_close(received, dict(weights(seed)), atol=0, rtol=0)
    assert sorted(workers.received) == [1, 2]
    assert workers.steps == ["init", *2 * ["start", "update", "finish"]]


def test_does_not_wait_for_workers_that_fail_to_join() -> None:
    with pytest.raises(WeightSyncError, match="can't init"):
        GlooSender(Workers(1, "init"), WeightSource(), "127.0.0.1")


@pytest.mark.parametrize("step", ["start", "update", "finish"])
def test_does_not_wait_for_failed_workers(step: str) -> None:
    source = WeightSource()
    source.weights = weights(0)
    sender = GlooSender(Workers(1, step), source, "127.0.0.1")
    with pytest.raises(WeightSyncError, match=f"can't {step}"):
        sender.send_weights()


def test_nccl_and_ipc_need_vllm() -> None:
    pytest.importorskip("torch")
    try:
        import vllm  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(WeightSyncError, match=r"'nccl' needs vLLM next to the trainer: pip install"):
            open_sender("nccl", Workers(1), WeightSource(), "127.0.0.1", 0)
    else:
        pytest.skip("vLLM is installed")
