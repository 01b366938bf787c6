"""Checks of the machine: packages, GPU, port, disk and memory."""

from __future__ import annotations

import shutil
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from service.common.machine import available_memory
from service.doctor import CheckResult
from service.sandbox.settings import PoolSettings
from service.server.settings import Settings

GIB = 2**30


def packages(engine: str) -> CheckResult:
    """Check that the packages of the engine are installed."""
    needed = {
        "transformers": ("torch", "transformers"),
        "gguf": ("llama-cpp-python", "torch", "transformers"),
        "vllm": ("vllm",),
        "remote": ("transformers",),
    }[engine]
    try:
        found = ", ".join(f"{name} {version(name)}" for name in needed)
    except PackageNotFoundError as error:
        extra = engine if engine in ("gguf", "vllm") else "cpu"
        return CheckResult("packages", "fail", f"{error.name} is missing", f"pip install 'ih-grpo[{extra}]'")
    return CheckResult("packages", "ok", f"engine {engine}: {found}")


def gpu(settings: Settings) -> CheckResult:
    """Check which device will be used, and compare it with the configured one."""
    if settings.engine_kind == "gguf":
        return _llama_gpu(settings)
    try:
        import torch
    except ModuleNotFoundError:
        return CheckResult("gpu", "ok", "skipped: torch is not installed")
    wanted = settings.device.startswith("cuda")
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
        return CheckResult(
            "gpu", "ok", ", ".join(f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB" for gpu in names)
        )
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return CheckResult(
            "gpu",
            "fail" if wanted else "warn",
            "there is an NVIDIA driver, but torch was built for the CPU",
            "reinstall torch from its default index: pip install --force-reinstall torch",
        )
    if wanted:
        return CheckResult(
            "gpu", "fail", f"device is {settings.device!r}, but torch finds no GPU", "set device to auto"
        )
    return CheckResult("gpu", "ok", "no GPU: the model runs on the CPU")


def _llama_gpu(settings: Settings) -> CheckResult:
    try:
        from llama_cpp import llama_supports_gpu_offload
    except ModuleNotFoundError:
        return CheckResult("gpu", "ok", "skipped: llama-cpp-python is not installed")
    if settings.device != "cpu" and llama_supports_gpu_offload():
        return CheckResult("gpu", "ok", "llama.cpp uses the GPU")
    return CheckResult("gpu", "ok", "the model runs on the CPU")


def port(settings: Settings) -> CheckResult:
    """Check that the server can listen on its address and port."""
    host = settings.host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, settings.port))
        except OSError as error:
            if _serves(settings):
                return CheckResult(
                    "port", "ok", f"{host}:{settings.port}: an ih-grpo server is already running there"
                )
            hint = f"stop the program that uses it (ss -ltnp 'sport = :{settings.port}'), or set another port"
            return CheckResult("port", "fail", f"{host}:{settings.port}: {error.strerror}", hint)
    return CheckResult("port", "ok", f"{host}:{settings.port} is free")


def _serves(settings: Settings) -> bool:
    address = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host  # noqa: S104  a request, not a listener
    try:
        answer = httpx.get(f"http://{address}:{settings.port}/health", timeout=2)
        return bool(answer.json() == {"status": "ok"})
    except (httpx.HTTPError, ValueError):
        return False


def disk(folder: Path, *, needed: int) -> CheckResult:
    """Check the free space of the folder, or of the place where it will be created. ``needed`` is in
    bytes."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB free at {place}"
    if free < needed:
        return CheckResult(
            "disk",
            "fail",
            f"{found}, {needed / GIB:.1f} needed",
            "free some space, or set HF_HOME to another disk",
        )
    return CheckResult("disk", "ok", found)


def memory(weights: int, containers: int) -> CheckResult:
    """Check that memory is enough for ``weights`` bytes on the CPU and for ``containers`` at their limit."""
    free = available_memory()
    limit = PoolSettings().memory_mb << 20
    found = f"{free / GIB:.1f} GiB available"
    if free < weights:
        return CheckResult(
            "memory", "fail", f"{found}, the weights need {weights / GIB:.1f}", "serve a smaller model"
        )
    if free < weights + containers * limit:
        needs, hint = too_many_containers(containers, free - weights)
        if weights >= GIB / 10:
            needs = f"the model needs {weights / GIB:.1f} GiB, and {needs}"
        return CheckResult("memory", "warn", f"{found}; {needs}", hint)
    return CheckResult("memory", "ok", found)


def too_many_containers(containers: int, room: int) -> tuple[str, str]:
    """Return a description of the memory that ``containers`` need, and a hint of how many fit.

    Args:
        containers: number of containers.
        room: bytes of memory for containers.
    """
    limit = PoolSettings().memory_mb << 20
    needs = f"{containers} containers need up to {containers * limit / GIB:.1f} GiB"
    return needs, f"set max_containers and max_concurrent_episodes to {max(room // limit, 1)} or less"
