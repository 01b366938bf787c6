"""vLLM in the training process, on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.toy_task import make_toy_checkpoint
from tests.support.toy_training import assert_learns_on_vllm

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]


def test_in_process_vllm_samples_with_weights_of_each_step(tmp_path: Path) -> None:
    """Checkpoint with a tied head, which vLLM on the CPU would not update."""
    checkpoint = make_toy_checkpoint(tmp_path / "toy", head_dim=32)
    engine = {"enforce_eager": True, "max_num_seqs": 16}
    assert_learns_on_vllm(tmp_path, checkpoint, weight_transfer="gloo", vllm_args=engine)
