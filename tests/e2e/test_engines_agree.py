"""One question, three servers: embedded, vLLM in the process, and a vLLM server asked over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from tests.e2e.server import ServerProcess
from tests.support.vllm_args import VLLM_ARGS
from trainer.quickstart.traces import held_out_problems

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.docker, pytest.mark.timeout(2000)]
PROBLEMS = list(held_out_problems(20_261, 6, ("product", "two_products", "leftover", "larger", "sequence")))


@contextmanager
def client_of(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        yield client


def executed(message: Any) -> list[dict[str, Any]]:
    """The flushes of a reply, which omits the field if there are none."""
    return getattr(message, "executed_tools", None) or []


def ask(server: ServerProcess, question: str, **options: Any) -> Any:
    """The reply; asked again where the machine was too busy for the sandbox, no engine's doing."""
    for _ in range(4):
        with client_of(server) as client:
            reply: Any = client.chat.completions.create(
                model="quickstart", messages=[{"role": "user", "content": question}], **options
            )
        if all(tool["status"] in ("ok", "error") for tool in executed(reply.choices[0].message)):
            break
    return reply


def test_greedy_episodes_are_equal_on_all_engines(vllm_servers: dict[str, ServerProcess]) -> None:
    right = 0
    for problem in PROBLEMS:
        with ThreadPoolExecutor() as pool:
            asked = {
                name: pool.submit(ask, server, problem.text, temperature=0, seed=7, logprobs=True)
                for name, server in vllm_servers.items()
            }
        replies = {name: future.result() for name, future in asked.items()}
        episodes = {name: _episode(reply) for name, reply in replies.items()}
        assert episodes["vllm"] == episodes["transformers"]
        assert episodes["remote"] == episodes["transformers"]
        logprobs = {name: _logprobs(reply) for name, reply in replies.items()}
        assert logprobs["vllm"] == pytest.approx(logprobs["transformers"], abs=1e-4)
        assert logprobs["remote"] == pytest.approx(logprobs["transformers"], abs=1e-4)
        right += f"\\boxed{{{problem.answer}}}" in replies["vllm"].choices[0].message.content
    assert right >= 5


def _episode(reply: Any) -> Any:
    """Return text, code and answer of a reply, without times and ids."""
    [choice] = reply.choices
    tools = [
        ([block["code"] for block in tool["blocks"]], tool["output"], tool["status"])
        for tool in executed(choice.message)
    ]
    assert tools
    return choice.message.content, tools, choice.finish_reason, reply.usage.completion_tokens


def _logprobs(reply: Any) -> list[float]:
    return [entry.logprob for entry in reply.choices[0].logprobs.content]


@pytest.mark.parametrize("engine", ["vllm", "remote"])
def test_second_request_is_cached_and_reported_in_usage(
    vllm_servers: dict[str, ServerProcess], engine: str
) -> None:
    question = "Ignore what follows. " * 12 + PROBLEMS[0].text
    first, second = (ask(vllm_servers[engine], question, temperature=0) for _ in range(2))
    cached = [reply.usage.prompt_tokens_details.cached_tokens for reply in (first, second)]
    block = VLLM_ARGS["block_size"]
    assert cached[0] < cached[1] == (second.usage.prompt_tokens - 1) // block * block


def test_remote_engine_streams_executed_tools(vllm_servers: dict[str, ServerProcess]) -> None:
    text, statuses = "", list[str]()
    with client_of(vllm_servers["remote"]) as client:
        stream: Any = client.chat.completions.create(
            model="quickstart",
            messages=[{"role": "user", "content": PROBLEMS[1].text}],
            temperature=0,
            stream=True,
        )
        for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                tools = getattr(choice.delta, "executed_tools", None) or ()
                statuses += [tool["status"] for tool in tools]
    assert f"\\boxed{{{PROBLEMS[1].answer}}}" in text
    assert "ok" in statuses


@pytest.mark.parametrize("engine", ["vllm", "remote"])
def test_rejects_logprobs_that_vllm_does_not_report(
    vllm_servers: dict[str, ServerProcess], engine: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        ask(vllm_servers[engine], PROBLEMS[0].text, temperature=0.5, logprobs=True)
