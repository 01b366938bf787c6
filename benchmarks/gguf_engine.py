"""The GGUF engine compared with llama-server, and with the embedded engine.

    python benchmarks/gguf_engine.py --model FILE.gguf --server build/bin/llama-server --streams 1 4 8
    python benchmarks/gguf_engine.py --model FILE.gguf --checkpoint DIR    # log-probabilities

Speed: both sides get the same random prompts as token ids, decode the same number of tokens at temperature 1
and stream every token. The engine runs in this process, ``llama-server -np STREAMS`` in its own, with its
HTTP API on loopback. llama-server must be of the same llama.cpp as llama-cpp-python (``--own-libraries`` runs
it on the libraries of the installed package). The two sides alternate; the ratio is taken within a round.

Accuracy: every token of texts of this repository, given the tokens before it, in the GGUF engine and in the
embedded engine on ``--checkpoint``, in float32.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import llama_cpp

from benchmarks.machine import describe_machine
from service.common import logs
from service.common.machine import physical_cores
from service.engines.base import Engine, PromptLogprob, Sampling
from service.engines.gguf.engine import GGUFEngine
from service.engines.gguf.runner import can_repack_weights
from service.engines.settings import GGUFSettings, TransformersSettings
from service.engines.transformers.engine import TransformersEngine

REPO = Path(__file__).resolve().parents[1]
TEXTS = ("docs/concepts/*.md", "service/deferral/*.py")
MiB = 2**20


async def run_engine(engine: Engine, prompts: Sequence[Sequence[int]], new: int) -> float:
    """Output tokens per second, including the time for the prompts."""

    async def one(ids: Sequence[int]) -> int:
        return sum([len(chunk.ids) async for chunk in engine.generate(ids, Sampling(max_tokens=new))])

    begin = time.perf_counter()
    counts = await asyncio.gather(*(one(ids) for ids in prompts))
    return sum(counts) / (time.perf_counter() - begin)


async def run_server(client: httpx.AsyncClient, prompts: Sequence[Sequence[int]], new: int) -> float:
    """The same over llama-server's completion API."""
    common = {"n_predict": new, "ignore_eos": True, "stream": True, "return_tokens": True}
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "samplers": ["temperature"]}

    async def one(ids: Sequence[int]) -> int:
        body = {**common, **sampling, "prompt": list(ids), "cache_prompt": False}
        count = 0  # chunks leave out the tokens of an incomplete character
        async with client.stream("POST", "/completion", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    count = json.loads(line[6:]).get("tokens_predicted", count)
        return count

    begin = time.perf_counter()
    counts = await asyncio.gather(*(one(ids) for ids in prompts))
    assert set(counts) == {new}, counts
    return sum(counts) / (time.perf_counter() - begin)


@contextmanager
def llama_server(arguments: argparse.Namespace, streams: int, context: int) -> Iterator[str]:
    """Run ``llama-server -np streams`` and yield its address."""
    environment = dict(os.environ)
    if arguments.own_libraries:
        environment["LD_LIBRARY_PATH"] = str(Path(llama_cpp.__file__).parent / "lib")
    command = [arguments.server, "--model", arguments.model, "--parallel", str(streams)]
    command += ["--ctx-size", str(streams * context), "--threads", str(arguments.threads), "--no-webui"]
    command += ["--host", "127.0.0.1", "--port", str(arguments.port), "--log-disable"]
    if not can_repack_weights():
        command.append("--no-repack")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{arguments.port}"
    try:
        while process.poll() is None:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        else:
            raise SystemExit(f"{arguments.server} did not start")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


async def compare_speed(arguments: argparse.Namespace) -> None:
    context = 16 * -(-(arguments.prompt + arguments.new + 1) // 16)
    print("| streams | engine, tokens/s | llama-server, tokens/s | ratio |\n| --: | --: | --: | --: |")
    rng = random.Random(0)
    for streams in arguments.streams:
        engine = GGUFEngine(
            GGUFSettings(
                model=arguments.model,
                device="cpu",
                max_slots=streams,
                cache_tokens=streams * context,
                threads=arguments.threads,
            )
        )
        await engine.start()
        ours: list[float] = []
        theirs: list[float] = []
        with llama_server(arguments, streams, context) as url:
            async with httpx.AsyncClient(base_url=url, timeout=600) as client:
                for number in range(arguments.rounds + 1):  # the first round warms up
                    prompts = [rng.choices(range(1000), k=arguments.prompt) for _ in range(streams)]
                    for side in (0, 1) if number % 2 else (1, 0):
                        if side:
                            theirs.append(await run_server(client, prompts, arguments.new))
                        else:
                            ours.append(await run_engine(engine, prompts, arguments.new))
        await engine.stop()
        ratios = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]
        print(
            f"| {streams} | {spread(ours[1:], 1)} | {spread(theirs[1:], 1)} | {spread(ratios, 3)} |",
            flush=True,
        )


async def score(engine: Engine, texts: Sequence[Sequence[int]]) -> list[PromptLogprob]:
    await engine.start()
    found: list[PromptLogprob] = []
    for ids in texts:
        async for chunk in engine.generate(ids, Sampling(max_tokens=1, prompt_logprobs=1)):
            found += chunk.prompt_logprobs
    await engine.stop()
    return found


async def compare_values(arguments: argparse.Namespace) -> None:
    engine = GGUFEngine(GGUFSettings(model=arguments.model, device="cpu", threads=arguments.threads))
    reference = TransformersEngine(
        TransformersSettings(
            model=arguments.checkpoint, device="cpu", dtype="float32", threads=arguments.threads
        )
    )
    files = [path for pattern in TEXTS for path in sorted(REPO.glob(pattern))]
    texts = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        ids = reference.tokenizer.encode(text, allow_special=False)
        assert engine.tokenizer.encode(text, allow_special=False) == ids
        texts.append(ids[: arguments.length])
    ours, theirs = await score(engine, texts), await score(reference, texts)
    differences = [abs(a.logprob - b.logprob) for a, b in zip(ours, theirs, strict=True)]
    same = [
        a.top_logprobs[0].token_id == b.top_logprobs[0].token_id for a, b in zip(ours, theirs, strict=True)
    ]
    print("| tokens | mean difference of log-probabilities | largest | same most likely token |")
    print("| --: | --: | --: | --: |")
    print(
        f"| {len(same):,} | {statistics.mean(differences):.4f} | {max(differences):.3f} "
        f"| {statistics.mean(same):.2%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--server", help="llama-server to compare the speed with")
    parser.add_argument(
        "--own-libraries", action="store_true", help="run llama-server on llama-cpp-python's libraries"
    )
    parser.add_argument("--checkpoint", help="checkpoint to compare the log-probabilities with")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens per stream")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--length", type=int, default=512, help="tokens per text, with --checkpoint")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--port", type=int, default=8199)
    arguments = parser.parse_args()
    logs.configure("warning", "console")
    print(describe_machine("llama-cpp-python", "torch", "transformers"))
    size = Path(arguments.model).stat().st_size / MiB
    print(
        f"{Path(arguments.model).name}, {size:,.0f} MiB, {arguments.threads} threads, "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    if arguments.server:
        asyncio.run(compare_speed(arguments))
    if arguments.checkpoint:
        asyncio.run(compare_values(arguments))


if __name__ == "__main__":
    main()
