from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from huggingface_hub import constants
from structlog.testing import capture_logs

from service.engines import hub
from service.engines.hub import download
from service.engines.model_lookup import locate
from tests.support.fake_hub import FakeHub, serve_hub

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(3 * 2**20),
    "README.md": b"not needed",
}


@contextmanager
def endpoint(url: str) -> Iterator[None]:
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    with (
        patch.object(constants, "ENDPOINT", url),
        patch.object(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
    ):
        yield


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    models = {"org/model": FILES, "org/gguf": {"model.gguf": b"x", "notes.txt": b"x"}}
    with (
        serve_hub(FakeHub(models, gated=frozenset({"org/gated"}))) as served,
        endpoint(served.url),
        patch.object(constants, "HF_HUB_CACHE", str(tmp_path / "cache")),
    ):
        yield served


def test_downloads_only_needed_files_once(fake_hub: FakeHub) -> None:
    with capture_logs() as logs:
        folder = download("org/model")
    assert {path.name for path in folder.iterdir()} == set(FILES) - {"README.md"}
    assert (folder / "model.safetensors").stat().st_size == 3 * 2**20
    events = [entry["event"] for entry in logs]
    assert (events[0], events[-1]) == ("model_download", "model_downloaded")
    assert logs[0]["mib"] == 3
    count = len(fake_hub.downloads())
    with capture_logs() as logs:
        assert download("org/model") == folder
    assert logs == []
    assert len(fake_hub.downloads()) == count


def test_without_weights(fake_hub: FakeHub) -> None:
    folder = download("org/model", weights=False)
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json"}
    assert "model.safetensors" in {path.name for path in download("org/model").iterdir()}


def test_progress_is_logged_without_a_terminal(fake_hub: FakeHub) -> None:
    with patch.object(hub, "LOG_EVERY_S", 0), capture_logs() as logs:
        download("org/model")
    progress = [entry for entry in logs if entry["event"] == "model_download_progress"]
    assert progress
    assert [entry["mib"] for entry in progress] == sorted(entry["mib"] for entry in progress)
    assert (progress[-1]["mib"], progress[-1]["of_mib"], progress[-1]["percent"]) == (3, 3, 100)


def test_progress_is_a_bar_on_a_terminal(fake_hub: FakeHub, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    seen = bytearray()

    def read() -> None:
        while True:
            try:
                seen.extend(os.read(master, 4096))
            except OSError:  # the other side is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    process = subprocess.run(
        [sys.executable, "-c", "from service.engines.hub import download; download('org/model')"],
        env={**os.environ, "HF_ENDPOINT": fake_hub.url, "HF_HOME": str(tmp_path / "home")},
        stderr=slave,
        stdout=subprocess.DEVNULL,
        timeout=120,
    )
    os.close(slave)
    reader.join()
    os.close(master)
    assert process.returncode == 0
    assert b"100%|" in seen, seen
    assert b"3.15M" in seen, seen


def test_checkpoint_by_hub_id(fake_hub: FakeHub) -> None:
    assert (locate("org/model") / "config.json").is_file()
    with pytest.raises(ValueError, match=r"neither config\.json nor adapter_config\.json .*GGUF"):
        locate("org/gguf")


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("org/none", "does not exist at .* or is private: .*HF_TOKEN"),
        ("org/gated", "accept it at .*org/gated"),
    ],
)
def test_hub_errors_have_hints(fake_hub: FakeHub, model: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"model '{model}' can't be downloaded: .*{hint}"):
        download(model)


def test_unreachable_hub(fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = download("org/model")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with endpoint(f"http://127.0.0.1:{port}"):
        assert download("org/model") == folder
        with pytest.raises(
            ValueError, match=f"not in the cache and http://127.0.0.1:{port} can't be reached"
        ):
            download("org/other")


def test_offline_mode(fake_hub: FakeHub) -> None:
    folder = download("org/model")
    with patch.object(constants, "HF_HUB_OFFLINE", True):
        assert download("org/model") == folder
        with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
            download("org/other")


def test_full_disk_is_detected_before_the_download(fake_hub: FakeHub) -> None:
    usage = hub.shutil.disk_usage("/")._replace(free=2**20)
    with (
        patch.object(hub.shutil, "disk_usage", lambda _path: usage),
        pytest.raises(ValueError, match=r"needs 3 MiB .* has 1 MiB free: .*HF_HOME"),
    ):
        download("org/model")
    assert fake_hub.downloads() == []
