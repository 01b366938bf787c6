from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.deferral.policy import DeferralPolicy
from service.sandbox.base import ExecutionResult
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, make_app, serve
from tests.support.until import until

BLOCKS = "```python\nx = 1\n```\nthen\n```python\nprint(x)\n```"
ASK = BLOCKS + "<tool_call>"
SECRET = "a secret question"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.shutdown()


async def serving(
    exporter: InMemorySpanExporter, engine: ScriptedEngine, result: ExecutionResult, policy: DeferralPolicy
) -> AsyncGenerator[Served, None]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = make_app(engine, ScriptedSandbox(lambda blocks: result), policy)
    async with serve(app) as served:
        served.app.state.server.tracer = provider.get_tracer("test")
        yield served


async def spans(
    exporter: InMemorySpanExporter,
    *turns: str,
    result: ExecutionResult | None = None,
    policy: DeferralPolicy | None = None,
    **headers: str,
) -> dict[str, list[ReadableSpan]]:
    async for served in serving(
        exporter, ScriptedEngine(*turns), result or printed("1"), policy or DeferralPolicy()
    ):
        body: Any = {"model": "scripted", "messages": [{"role": "user", "content": SECRET}]}
        body |= {"user": "me", "metadata": {"team": "a"}}
        async with httpx.AsyncClient(base_url=served.url) as client:
            await client.post("/v1/chat/completions", json=body, headers=headers)
    named: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        named.setdefault(span.name.split()[0], []).append(span)
    return named


async def test_one_span_for_each_invocation_execution_and_delivery(exporter: InMemorySpanExporter) -> None:
    named = await spans(exporter, ASK, "\\boxed{1}" + EOS)
    [root] = named["chat"]
    first, second = named["invoke"]
    [execution], [delivery] = named["execute"], named["deliver"]
    for span in (first, second, execution, delivery):
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
    assert [span.attributes["ih_grpo.block.index"] for span in (first, second)] == [0, 1]
    assert first.attributes["ih_grpo.dropped"] is False
    assert first.start_time <= second.start_time <= second.end_time
    # The sandbox's own clock says when code ran.
    assert (execution.start_time, execution.end_time) == (10**9, 1_200_000_000)
    assert execution.attributes["ih_grpo.status"] == "ok"
    assert delivery.attributes["ih_grpo.delivered"] is True
    assert delivery.attributes["ih_grpo.waited_ms"] == 100
    assert delivery.attributes["ih_grpo.hidden_ms"] == pytest.approx(200)  # it ran long before the flush
    assert delivery.attributes["ih_grpo.container_wait_ms"] >= 0
    assert root.attributes["gen_ai.operation.name"] == "chat"
    assert root.attributes["gen_ai.usage.output_tokens"] > 0
    assert root.attributes["ih_grpo.outcome.0"] == "answer"
    assert (root.attributes["enduser.id"], root.attributes["ih_grpo.metadata.team"]) == ("me", "a")
    exported = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert SECRET not in exported
    assert "print(x)" not in exported


async def test_execution_and_delivery_are_separate_spans(exporter: InMemorySpanExporter) -> None:
    failed = ExecutionResult("", "NameError: x", "error", wall_seconds=0.1, waited_seconds=0.1)
    named = await spans(exporter, ASK, EOS, result=failed)
    assert not named["execute"][0].status.is_ok
    assert named["execute"][0].attributes["error.type"] == "error"
    assert named["deliver"][0].attributes["ih_grpo.delivered"] is True

    exporter.clear()
    long = printed("y" * 200)
    tight = DeferralPolicy(prompt="brief-v1", max_episode_tokens=200)
    named = await spans(exporter, ASK, EOS, result=long, policy=tight)
    assert named["execute"][0].attributes["ih_grpo.status"] == "ok"
    assert named["deliver"][0].attributes["ih_grpo.delivered"] is False
    assert not named["deliver"][0].status.is_ok


async def test_unflushed_blocks_are_marked_as_dropped(exporter: InMemorySpanExporter) -> None:
    named = await spans(exporter, BLOCKS + EOS)
    assert [span.attributes["ih_grpo.dropped"] for span in named["invoke"]] == [True, True]
    assert "execute" not in named


async def test_client_trace_is_continued(exporter: InMemorySpanExporter) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    named = await spans(exporter, EOS, traceparent=parent)
    [root] = named["chat"]
    assert f"{root.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == "b7ad6b7169203331"


async def test_disconnect_ends_all_spans(exporter: InMemorySpanExporter) -> None:
    engine = ScriptedEngine(BLOCKS + "x" * 10_000, delay_s=0.002)
    async for served in serving(exporter, engine, printed(""), DeferralPolicy()):
        messages: Any = [{"role": "user", "content": "?"}]
        stream = await served.openai.chat.completions.create(model="scripted", messages=messages, stream=True)
        async for chunk in stream:
            if (getattr(chunk.choices[0].delta, "executed_tools", None) or [{"blocks": ()}])[0]["blocks"][1:]:
                break
        await stream.response.aclose()
        await until(lambda: len(exporter.get_finished_spans()) == 3)
    root = exporter.get_finished_spans()[-1]
    assert root.attributes["ih_grpo.client_left"] is True
