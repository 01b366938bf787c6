"""Training with a real vLLM server for sampling, on the CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.toy_task import make_toy_checkpoint
from tests.support.toy_training import assert_learns_on_vllm
from trainer.weight_sync.senders import WeightSyncError
from trainer.weight_sync.servers import VLLMServers

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="there is no vLLM environment: scripts/ensure-vllm"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint with a head size that vLLM supports. Untied: on the CPU vLLM keeps a tied head on reload."""
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
        "--max-num-seqs", "16", "--weight-transfer-config", '{"backend": "gloo"}',
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


@pytest.mark.parametrize("transfer", ["files", "gloo"])
def test_server_samples_with_weights_of_each_step(
    tmp_path: Path, checkpoint: Path, url: str, transfer: str
) -> None:
    weights = tmp_path / "weights" if transfer == "files" else None
    assert_learns_on_vllm(
        tmp_path, checkpoint, generation_urls=(f"{url}/v1",), weight_transfer=transfer, weights_dir=weights
    )
    if transfer == "files":
        assert [path.name for path in (tmp_path / "weights").iterdir()] == ["weights-000007"]
    else:
        assert httpx.get(f"{url}/weight_info").json() == {"weight_version": "rollout-7"}


def test_server_samples_with_an_adapters_merged_weights(tmp_path: Path, checkpoint: Path, url: str) -> None:
    """Embedding and LM head are separate here, so the marker has a trained row in each."""
    assert_learns_on_vllm(
        tmp_path, checkpoint, generation_urls=(f"{url}/v1",), weight_transfer="gloo", learning_rate=1e-2,
        lora={"rank": 8, "marker_lr": 1e-3}, steps=16, save_every=16,
    )  # fmt: skip


def test_server_reports_rejected_weights(url: str) -> None:
    servers = VLLMServers([url], None)
    assert servers.world_size() == 1
    with pytest.raises(WeightSyncError, match=r"/init_weight_transfer_engine answered 500"):
        servers.init_weight_transfer_engine({"nonsense": 1})
    with pytest.raises(WeightSyncError, match=r"/update_weights answered 500"):  # not started
        servers.update_weights({"names": [], "dtype_names": [], "shapes": []})
    servers.pause()
    assert httpx.get(f"{url}/is_paused").json() == {"is_paused": True}
    servers.resume()
    assert httpx.get(f"{url}/is_paused").json() == {"is_paused": False}
