"""A real language model on ordinary requests and mathematics, with and without deferred execution.

    ih-grpo serve --model DIR &                                  # any engine; several with different policies
    python benchmarks/real_model.py requests --url http://127.0.0.1:8000
    python benchmarks/real_model.py math --url http://127.0.0.1:8000 --problems math500.parquet --count 200

``requests`` sends the list of ``tests/real_model/requests.jsonl`` twice, with code execution and as a plain
chat, at temperature 0, and counts unneeded executions, missing executions, code left pending,
empty answers and right answers. ``math`` compares the model with itself: three plain step-by-step prompts
against the served default. Replies are kept in ``--out`` as JSON Lines; a rerun resumes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import httpx

from tests.real_model.judge import REQUESTS, Request, Verdict, judge, load

GREEDY: Final = {"temperature": 0, "top_p": 1, "top_k": -1, "repetition_penalty": 1.0}
BOX: Final = "\nPut your final answer within \\boxed{}."
PLAIN: Final = {
    "plain, reason step by step": (
        "Please reason step by step, and put your final answer within \\boxed{}.",
        "",
    ),
    "plain, let's think": (
        "You are a helpful assistant.",
        "\nLet's think step by step and output the final answer within \\boxed{}.",
    ),
    "plain, careful": (
        "You are a careful mathematician. Solve the problem step by step, check the calculation, and write "
        "the final answer in \\boxed{}.",
        "",
    ),
}
"""System message and suffix of the problem."""


class Server:
    """Client of an OpenAI-compatible server with a limit of concurrent requests."""

    def __init__(self, url: str, model: str | None, concurrency: int) -> None:
        self._http = httpx.AsyncClient(base_url=url.rstrip("/").removesuffix("/v1"), timeout=3600)
        self._model = model
        self._slots = asyncio.Semaphore(concurrency)

    async def chat(self, messages: Sequence[Mapping[str, str]], **fields: Any) -> dict[str, Any]:
        """Request a chat completion and return it."""
        async with self._slots:
            if self._model is None:
                self._model = (await self._http.get("/v1/models")).json()["data"][0]["id"]
            body = {**GREEDY, "model": self._model, "messages": list(messages), **fields}
            try:
                reply = await self._http.post("/v1/chat/completions", json=body)
            except httpx.TransportError as error:
                raise SystemExit(f"the server did not respond ({error!r}); rerun to resume") from None
            if reply.is_error:
                raise SystemExit(f"the server answered {reply.status_code}: {reply.text[:500]}")
            result: dict[str, Any] = reply.json()
            return result


class Log:
    """Replies on disk by key, so that a rerun requests only the missing ones."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.replies: dict[str, dict[str, Any]] = {row["key"]: row["reply"] for row in map(json.loads, lines)}

    async def fill(self, asks: Mapping[str, Callable[[], Awaitable[dict[str, Any]]]]) -> None:
        async def one(key: str, ask: Callable[[], Awaitable[dict[str, Any]]]) -> None:
            reply = await ask()
            self.replies[key] = reply
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "reply": reply}) + "\n")

        await asyncio.gather(*(one(key, ask) for key, ask in asks.items() if key not in self.replies))


def describe(args: argparse.Namespace) -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in ("ih-grpo", "torch", "transformers"))
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, {packages}, {args.url}"
    )


async def ordinary(args: argparse.Namespace) -> None:
    requests = load(args.requests)
    server = Server(args.url, args.model, args.concurrency)
    described: dict[str, dict[str, Any]] = {"served": {}, "plain": {"deferral": {"enabled": False}}}
    for name, fields in described.items():
        if args.only and args.only not in name:
            continue
        log = Log(args.out / f"requests-{name}.jsonl")
        began = time.monotonic()
        await log.fill(
            {
                request.id: lambda request=request, fields=fields: server.chat(
                    request.messages, max_tokens=args.max_tokens, **fields
                )
                for request in requests
            }
        )
        verdicts = [
            (request, judge(request, log.replies[request.id]["choices"][0]["message"]))
            for request in requests
        ]
        print_requests(name, verdicts, time.monotonic() - began)
        if name == "served" and args.details:
            for request, verdict in verdicts:
                print_failure(request, verdict, log.replies[request.id])


def print_requests(name: str, verdicts: Sequence[tuple[Request, Verdict]], seconds: float) -> None:
    needing = [verdict for request, verdict in verdicts if request.needs_execution]
    others = [verdict for request, verdict in verdicts if not request.needs_execution]
    print(
        f"{name}: {sum(v.unneeded_execution for v in others)} executions in {len(others)} requests that need "
        f"none; {sum(v.missing_execution for v in needing)} missing in {len(needing)} that need one; "
        f"{sum(v.pending_code for _, v in verdicts)} with pending code; {sum(v.empty for _, v in verdicts)} "
        f"empty; right {sum(bool(v.right) for v in needing)} of {len(needing)}, "
        f"{sum(v.right_from_execution for v in needing)} of them from an executed result; {seconds:.0f} s"
    )


def print_failure(request: Request, verdict: Verdict, reply: Mapping[str, Any]) -> None:
    wrong = [name for name in Verdict.__slots__ if name not in ("right", "right_from_execution")]
    failed = [name for name in wrong if getattr(verdict, name)]
    if verdict.right is False:
        failed.append("wrong")
    if failed:
        text = reply["choices"][0]["message"]["content"]
        print(f"--- {request.id} {request.category}: {', '.join(failed)}; expected {request.answer}")
        print(f"{request.messages[-1]['content']}\n>>> {text}")


async def mathematics(args: argparse.Namespace) -> None:
    import pyarrow.parquet as pq

    from trainer.rewards.scorer import RewardScorer

    rows = pq.read_table(args.problems).to_pylist()[: args.count]
    problems = [(str(row["prompt"][0]["content"]), str(row["reward_model"]["ground_truth"])) for row in rows]
    server = Server(args.url, args.model, args.concurrency)
    ways: dict[str, Callable[[str], Awaitable[dict[str, Any]]]] = {
        "served default": lambda problem: server.chat(
            [{"role": "user", "content": problem + BOX}], max_tokens=args.max_tokens
        )
    }
    for name, (system, suffix) in PLAIN.items():
        ways[name] = lambda problem, system=system, suffix=suffix: server.chat(  # type: ignore[misc]
            [{"role": "system", "content": system}, {"role": "user", "content": problem + suffix}],
            max_tokens=args.max_tokens,
            deferral={"enabled": False},
        )
    async with RewardScorer() as scorer:
        for name, ask in ways.items():
            if args.only and args.only not in name:
                continue
            log = Log(args.out / f"math-{name.replace(' ', '-')}.jsonl")
            await log.fill(
                {
                    str(i): lambda problem=problem, ask=ask: ask(problem)
                    for i, (problem, _) in enumerate(problems)
                }
            )
            right = tokens = flushed = cut = 0
            for i, (_, gold) in enumerate(problems):
                [choice] = log.replies[str(i)]["choices"]
                reward = await scorer.score(choice["message"]["content"] or "", gold)
                right += reward.value == 1
                tokens += log.replies[str(i)]["usage"]["completion_tokens"]
                flushed += bool(choice["message"].get("executed_tools"))
                cut += choice["finish_reason"] == "length"
            count = len(problems)
            print(
                f"{name}: {right} of {count} right ({right / count:.1%}), {tokens / count:.0f} tokens each, "
                f"code ran in {flushed}, {cut} cut at {args.max_tokens} tokens"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["requests", "math"])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="server, with or without /v1")
    parser.add_argument("--model", help="model name; default: the server's first model")
    parser.add_argument("--out", type=Path, default=Path("runs/real-model"), help="directory of the replies")
    parser.add_argument("--concurrency", type=int, default=8, help="concurrent requests")
    parser.add_argument("--max-tokens", type=int, default=768, help="token limit of a reply")
    parser.add_argument("--requests", type=Path, default=REQUESTS, help="list of requests")
    parser.add_argument("--details", action="store_true", help="print the replies that failed")
    parser.add_argument("--problems", type=Path, help="parquet file of problems")
    parser.add_argument("--count", type=int, default=200, help="number of problems")
    parser.add_argument("--only", help="only prompts whose name contains this; requests: served, plain")
    args = parser.parse_args()
    describe(args)
    asyncio.run({"requests": ordinary, "math": mathematics}[args.what](args))


if __name__ == "__main__":
    main()
