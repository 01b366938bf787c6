from __future__ import annotations

import httpx
import openai
import pytest

from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve
from tests.support.until import until

MESSAGES = [{"role": "user", "content": "?"}]


def sandbox() -> ScriptedSandbox:
    return ScriptedSandbox(lambda blocks: printed(""))


async def test_limits_requests_per_minute_of_each_key() -> None:
    app = make_app(
        ScriptedEngine(EOS), sandbox(), api_keys="sk-one rpm=2 name=a,sk-two", key_requests_per_minute=3
    )
    async with serve(app, key="sk-one") as served, httpx.AsyncClient(base_url=served.url) as client:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("sk-one", "sk-two"))
        answers = [await client.get("/v1/models", headers=one) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
        assert 1 <= int(answers[2].headers["retry-after"]) <= 60
        assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
        with pytest.raises(openai.RateLimitError):
            await served.openai.models.list()
        # The other key has its own count, and the operator's routes are not counted.
        assert [(await client.get("/v1/models", headers=two)).status_code for _ in range(4)] == [200] * 3 + [
            429
        ]
        assert (await client.get("/ready", headers=one)).status_code == 200
        text = (await client.get("/metrics", headers=two)).text
    assert 'ihgrpo_refused_total{limit="key_requests"} 3.0' in text


async def test_limits_concurrent_requests_of_each_key() -> None:
    engine = ScriptedEngine("x" * 10_000, delay_s=0.005)
    app = make_app(engine, sandbox(), api_keys="sk-one concurrency=1,sk-two")
    async with serve(app, key="sk-one") as served:
        stream = await served.openai.chat.completions.create(model="scripted", messages=MESSAGES, stream=True)  # type: ignore[call-overload]
        await anext(aiter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            await served.openai.models.list()
        assert caught.value.response.headers["retry-after"] == "1"
        other = served.openai.with_options(api_key="sk-two")
        assert (await other.models.list()).data
        await stream.response.aclose()
        # The place is free once the server has seen that the client is gone.
        left = {"route": "/v1/chat/completions", "status": "499"}
        registry = served.app.state.server.metrics.registry
        await until(lambda: registry.get_sample_value("ihgrpo_requests_total", left))
        assert (await served.openai.models.list()).data
