"""Checks of the machine: results and hints."""

from __future__ import annotations

import builtins
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.doctor import machine
from service.server.settings import Settings


def test_port_in_use_has_a_hint() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        found = machine.port(Settings(port=number))
    assert found.verdict == "fail"
    assert f"sport = :{number}" in found.hint


def test_free_port_is_ok() -> None:
    assert machine.port(Settings(port=0)).verdict == "ok"


def test_full_disk_is_reported_for_a_missing_folder(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert machine.disk(folder, needed=0).verdict == "ok"
    found = machine.disk(folder, needed=2**60)
    assert found.verdict == "fail"
    assert str(tmp_path) in found.found
    assert not folder.exists()


@pytest.mark.parametrize(
    ("weights", "containers", "verdict"), [(0, 0, "ok"), (2**50, 0, "fail"), (0, 10**6, "warn")]
)
def test_memory_is_compared_with_weights_and_containers(weights: int, containers: int, verdict: str) -> None:
    assert machine.memory(weights, containers).verdict == verdict


def test_memory_hint_has_the_number_of_containers_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 10 * machine.GIB)
    small, large = machine.memory(2**20, 32), machine.memory(4 * machine.GIB, 32)
    assert small.found == "10.0 GiB available; 32 containers need up to 16.0 GiB"
    assert small.hint == "set max_containers and max_concurrent_episodes to 19 or less"
    assert "the model needs 4.0 GiB, and 32 containers" in large.found
    assert "to 12 or less" in large.hint


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", version)
    assert machine.packages("transformers").hint == "pip install 'ih-grpo[cpu]'"
    assert machine.packages("vllm").hint == "pip install 'ih-grpo[vllm]'"
    assert machine.packages("gguf").hint == "pip install 'ih-grpo[gguf]'"


@pytest.mark.parametrize(
    ("device", "cuda", "built_with", "driver", "verdict"),
    [
        ("auto", False, None, None, "ok"),
        ("auto", False, None, "/usr/bin/nvidia-smi", "warn"),
        ("cuda", False, None, "/usr/bin/nvidia-smi", "fail"),
        ("cuda", False, "13.0", None, "fail"),
    ],
)
def test_reports_an_unused_gpu(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    cuda: bool,
    built_with: str | None,
    driver: str | None,
    verdict: str,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.version, "cuda", built_with)
    monkeypatch.setattr(machine.shutil, "which", lambda name: driver)
    assert machine.gpu(Settings(device=device)).verdict == verdict


def test_gpu_check_is_skipped_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def no_torch(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "torch":
            raise ModuleNotFoundError(name=name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    assert "not installed" in machine.gpu(Settings()).found


def test_port_of_a_running_ih_grpo_server_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    def health(url: str, timeout: float) -> httpx.Response:
        return httpx.Response(200, json={"status": "ok"})

    monkeypatch.setattr(httpx, "get", health)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert machine.port(Settings(port=taken.getsockname()[1])).verdict == "ok"
