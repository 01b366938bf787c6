from __future__ import annotations

import httpx

from service.deferral.policy import DeferralPolicy
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve


async def test_ready_names_the_missing_part() -> None:
    engine, sandbox = ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed(""))
    async with (
        serve(make_app(engine, sandbox)) as served,
        httpx.AsyncClient(base_url=served.url) as client,
    ):
        answer = await client.get("/ready")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")
        sandbox.is_ready = False
        answer = await client.get("/ready")
        assert (answer.status_code, answer.json()["sandbox"], answer.json()["engine"]) == (
            503,
            "not ready",
            "ready",
        )
        engine.healthy = False
        assert (await client.get("/ready")).json()["engine"] == "not ready"
        assert (await client.get("/health")).status_code == 200


async def test_ready_shows_details_only_with_a_key() -> None:
    sandbox = ScriptedSandbox(lambda blocks: printed(""))
    app = make_app(ScriptedEngine(EOS), sandbox, api_keys="sk-one")
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as client:
        key = {"Authorization": "Bearer sk-one"}
        wrong = {"Authorization": "Bearer sk-two"}
        for headers in ({}, wrong):
            answer = await client.get("/ready", headers=headers)
            assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
        assert (await client.get("/ready", headers=key)).json()["sandbox"] == "ready"
        sandbox.is_ready = False
        answer = await client.get("/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "not ready"})


async def test_metrics_report_hidden_time() -> None:
    ask = "```python\nx = 1\n```\nthen\n```python\nprint(x)\n```<tool_call>"
    engine = ScriptedEngine(ask, f"\\boxed{{1}}{EOS}")
    app = make_app(engine, ScriptedSandbox(lambda blocks: printed("1")), DeferralPolicy())
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as client:
        await served.openai.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "?"}]
        )
        text = (await client.get("/metrics")).text
    for line in (
        "ihgrpo_tool_invoked_total 2.0",
        'ihgrpo_tool_executed_total{status="ok"} 2.0',
        'ihgrpo_tool_delayed_total{status="ok"} 1.0',
        'ihgrpo_tool_run_seconds_total{status="ok"} 0.2',
        'ihgrpo_tool_waited_seconds_total{status="ok"} 0.1',
        'ihgrpo_tool_hidden_seconds_total{status="ok"} 0.',
        'ihgrpo_tool_container_wait_seconds_total{status="ok"} ',
        'ihgrpo_episodes_total{outcome="answer"} 1.0',
        'ihgrpo_requests_total{route="/v1/chat/completions",status="200"} 1.0',
        "ihgrpo_episodes_running 0.0",
    ):
        assert line in text
