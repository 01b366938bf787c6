"""What the service costs on top of the engine: the same vLLM behind our API and behind its own server.

    scripts/ensure-vllm
    .venv-vllm/bin/python benchmarks/serving.py    # needs Docker and the sandbox image

Output throughput, time to first token and CPU of the API process, with no tool used. A model with random
weights, its end tokens biased away, writes a fixed number of tokens; the servers take turns. What needs no
engine is measured by ``serving_api.py``.

Clients, servers and engines share this machine's cores. On a GPU the engine takes none of them, and what is
measured here as lost throughput is CPU that is idle there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import instruct
from tests.support.tiny_qwen3 import make_checkpoint, make_tokenizer
from tests.support.vllm_args import VLLM_ARGS

SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
}
ARGS = {**VLLM_ARGS, "max_num_seqs": 64, "enforce_eager": True}
MODEL = "bench"
ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "IHGRPO_STORE_URL": "sqlite://",
}


@dataclass(frozen=True)
class Target:
    """A server under test; ``process`` is the API's own, without the engine's children."""

    name: str
    url: str
    process: psutil.Process


@dataclass(frozen=True)
class Round:
    """Tokens per second of all streams, seconds to each first token, CPU seconds of the API a token."""

    throughput: float
    first: list[float]
    cpu: float


@contextmanager
def launched(name: str, command: list[str], port: int) -> Iterator[Target]:
    process = subprocess.Popen([sys.executable, "-m", *command], env={**os.environ, **ENVIRONMENT})
    try:
        yield Target(name, f"http://127.0.0.1:{port}", psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)


def wait_for(target: Target) -> None:
    """Until it listens. Both start at once, and neither listens before its engine is there."""
    port = int(target.url.rpartition(":")[2])
    while target.process.is_running() and target.process.status() != psutil.STATUS_ZOMBIE:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise SystemExit(f"the server {target.name!r} did not start")


def bare(model: Path, port: int) -> list[str]:
    command = ["vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(model), "--served-model-name", MODEL, "--dtype", "float32"]
    command += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
    for name, value in ARGS.items():
        command += (
            [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
        )
    return command


def ours(model: Path, port: int) -> list[str]:
    command = ["service", "serve", "--engine", "vllm", "--sandbox", "in-process", "--port", str(port)]
    command += ["--model", str(model), "--served-model-name", MODEL, "--max-concurrent-episodes", "64"]
    command += ["--log-level", "warning"]
    return [*command, *(f"--vllm-arg={name}={json.dumps(value)}" for name, value in ARGS.items())]


def body(target: Target, tokens: int, banned: list[int], seed: int) -> dict[str, Any]:
    """One prompt for both: vLLM's server gets the instruction that ours adds."""
    question = f"Problem {seed}: add {seed} and {seed + 1}."
    if target.name == "bare":
        question = instruct(question, DeferralPolicy().prompt)
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "chat_template_kwargs": {"enable_thinking": False},
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "temperature": 1.0,
        "seed": seed,
        "logit_bias": {str(token_id): -100 for token_id in banned},
    }


async def stream(session: aiohttp.ClientSession, url: str, payload: dict[str, Any]) -> tuple[float, int]:
    """Seconds to the first text, and tokens."""
    begin = time.perf_counter()
    first, tokens = 0.0, 0
    async with session.post(f"{url}/v1/chat/completions", json=payload) as response:
        response.raise_for_status()
        async for line in response.content:
            if not first and b'"content":"' in line.replace(b'": ', b'":') and b'"content":""' not in line:
                first = time.perf_counter() - begin
            if b'"usage":{' in line.replace(b'": ', b'":'):
                tokens = json.loads(line[5:])["usage"]["completion_tokens"]
    return first, tokens


async def play(target: Target, streams: int, tokens: int, banned: list[int], seed: int) -> Round:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:
        before, begin = _cpu(target.process), time.perf_counter()
        calls = (stream(session, target.url, body(target, tokens, banned, seed + n)) for n in range(streams))
        results = await asyncio.gather(*calls)
        seconds = time.perf_counter() - begin
        total = sum(count for _, count in results)
    assert total == streams * tokens, (total, streams * tokens)
    return Round(total / seconds, [first for first, _ in results], (_cpu(target.process) - before) / total)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def compare(targets: list[Target], options: argparse.Namespace, banned: list[int]) -> None:
    print(
        "| streams | output tokens/s, bare vLLM | ours | ratio | first token p50, ms: bare | ours | added |"
        " API CPU per token, µs: bare | ours |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for streams in options.streams:
        rounds: dict[str, list[Round]] = {target.name: [] for target in targets}
        for number in range(options.rounds + 1):
            # Whoever goes second finds a warm machine; they take turns at that too.
            for target in targets if number % 2 else targets[::-1]:
                done = await play(target, streams, options.tokens, banned, 1000 * number)
                if number:  # the first round warms up
                    rounds[target.name].append(done)
        speed, first, cpu = {}, {}, {}
        for name, played in rounds.items():
            speed[name] = statistics.median(r.throughput for r in played)
            first[name] = 1000 * statistics.median(second for r in played for second in r.first)
            cpu[name] = 1e6 * statistics.mean(r.cpu for r in played)
        (a, b) = (target.name for target in targets)
        print(
            f"| {streams} | {speed[a]:.0f} | {speed[b]:.0f} | {speed[b] / speed[a]:.3f} | {first[a]:.1f} |"
            f" {first[b]:.1f} | {first[b] - first[a]:+.1f} | {cpu[a]:.0f} | {cpu[b]:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=8731, help="this one and the next are taken")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(
        f"{os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, vLLM "
        f"{version('vllm-cpu')}, {options.tokens} tokens a stream, median of {options.rounds} rounds\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = make_checkpoint(Path(folder) / MODEL, **SHAPE)
        tokenizer = make_tokenizer()
        banned = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", "<tool_call>"])
        mine = stack.enter_context(launched("ours", ours(model, options.port), options.port))
        theirs = stack.enter_context(launched("bare", bare(model, options.port + 1), options.port + 1))
        for target in (theirs, mine):
            wait_for(target)
        asyncio.run(compare([theirs, mine], options, banned))


if __name__ == "__main__":
    main()
