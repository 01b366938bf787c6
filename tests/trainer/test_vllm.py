"""Training with a real vLLM server as the generator, on the CPU."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from tests.support.toy_task import GOLD, QUESTION, make_toy_checkpoint, toy_sandbox
from trainer.config import TrainConfig
from trainer.run import train

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="there is no vLLM environment: scripts/ensure-vllm"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of a size that vLLM has kernels for. Not tied: on the CPU it keeps a tied head over a reload."""
    directory = tmp_path_factory.mktemp("toy")
    return make_toy_checkpoint(directory, head_dim=32, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def url(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint),
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32",
        "--max-num-seqs", "16",
    ]  # fmt: skip
    environment = {
        **os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    log = tmp_path_factory.mktemp("vllm") / "log"
    address = f"http://127.0.0.1:{port}"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                httpx.get(f"{address}/health").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(1)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def test_the_server_samples_with_each_steps_weights(tmp_path: Path, checkpoint: Path, url: str) -> None:
    data = tmp_path / "problems.jsonl"
    data.write_text(json.dumps({"question": QUESTION, "answer": GOLD}) + "\n")
    settings = TrainConfig(
        model=str(checkpoint), data=(str(data),), run_dir=tmp_path / "run", steps=8, prompts_per_step=4,
        group_size=8, min_valid_samples=2, min_group_std=0.0, oversample=1.0, micro_batch_samples=16,
        learning_rate=1e-3, dtype="float32", device="cpu", threads=1, save_every=8, tensorboard=False,
        generation="vllm", generation_urls=(f"{url}/v1",), weights_dir=tmp_path / "weights",
    )  # fmt: skip
    last = train(settings, Console(file=io.StringIO()), sandbox=toy_sandbox())
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    # What vLLM says of its tokens is what the trainer's own model says of them, at every step.
    assert max(entry["logprob_gap"] for entry in history) < 1e-4
    rewards = [entry["reward"] for entry in history]
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.15
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["weights-000007"]
