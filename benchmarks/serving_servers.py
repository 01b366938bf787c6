"""The servers that ``serving.py`` compares: vLLM's own, and ours with vLLM in process, remote, or without
vLLM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.vllm_args import VLLM_ARGS, as_options

MODEL = "bench"
# Our server disables vLLM's metrics in favour of its own. They are off in both, so that the engines do equal
# work.
ARGS = {**VLLM_ARGS, "max_num_seqs": 64, "enforce_eager": True, "disable_log_stats": True}
ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker is in the engine's process, as with one GPU
    "OMP_NUM_THREADS": "1",
    "IHGRPO_STORE_URL": "sqlite://",
    "IHGRPO_WARM_CONTAINERS": "1",
}


@dataclass(frozen=True)
class Server:
    """A server under test; ``process`` is the API process, without the engine's child processes."""

    name: str
    url: str
    process: psutil.Process

    @property
    def instructs(self) -> bool:
        """Whether the server adds the deferral instruction to the prompt."""
        return self.name != "vLLM's own"


@contextmanager
def vllm(model: Path, port: int, dtype: str = "float32", threads: int = 1) -> Iterator[Server]:
    """vLLM's own OpenAI server."""
    command = ["vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(model), "--served-model-name", MODEL, "--dtype", dtype]
    command += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
    for name, value in ARGS.items():
        flag = f"--{name.replace('_', '-')}"
        command += [flag] if value is True else [flag, str(value)]
    with _launched("vLLM's own", command, port, threads) as server:
        yield server


@contextmanager
def embedded(model: Path, port: int, dtype: str, threads: int) -> Iterator[Server]:
    """Our server with the embedded engine."""
    engine = ["--engine", "transformers", "--dtype", dtype]
    with _launched("ours, embedded engine", _serve(model, port, engine), port, threads) as server:
        yield server


@contextmanager
def ours(model: Path, port: int, dtype: str = "float32", threads: int = 1) -> Iterator[Server]:
    """Our server, with vLLM in process."""
    engine = ["--engine", "vllm", "--dtype", dtype, *as_options(ARGS)]
    with _launched("ours", _serve(model, port, engine), port, threads) as server:
        yield server


@contextmanager
def ours_in_front(model: Path, port: int, upstream: Server) -> Iterator[Server]:
    """Our server, sampling on ``upstream``, a vLLM server, over HTTP."""
    engine = ["--engine", "remote", "--engine-url", upstream.url]
    with _launched("ours in front of it", _serve(model, port, engine), port) as server:
        yield server


def _serve(model: Path, port: int, engine: list[str]) -> list[str]:
    command = ["service", "serve", "--sandbox", "in-process", "--port", str(port), "--log-level", "warning"]
    command += ["--model", str(model), "--served-model-name", MODEL, "--max-concurrent-episodes", "64"]
    return [*command, *engine]


@contextmanager
def _launched(name: str, command: list[str], port: int, threads: int = 1) -> Iterator[Server]:
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield Server(name, f"http://127.0.0.1:{port}", psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)


def wait_for(server: Server) -> None:
    """Wait until the server listens, which it does once its engine is ready."""
    port = int(server.url.rpartition(":")[2])
    while server.process.is_running() and server.process.status() != psutil.STATUS_ZOMBIE:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise SystemExit(f"the server {server.name!r} did not start")
