"""vLLM in the training process, on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.toy_task import make_toy_checkpoint
from tests.support.toy_training import assert_learns_on_vllm

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]


def test_vllm_in_the_training_process_samples_with_each_steps_weights(tmp_path: Path) -> None:
    """With a tied head, which vLLM on the CPU would keep as it was."""
    checkpoint = make_toy_checkpoint(tmp_path / "toy", head_dim=32)
    engine = {"enforce_eager": True, "max_num_seqs": 16}
    assert_learns_on_vllm(tmp_path, checkpoint, weight_transfer="gloo", vllm_args=engine)
