from __future__ import annotations

import httpx

from service.api.limits import Drain
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve
from tests.support.until import until


async def test_draining_rejects_new_requests_only() -> None:
    engine = ScriptedEngine("word " * 40 + EOS, delay_s=0.005)
    app = make_app(engine, ScriptedSandbox(lambda blocks: printed("")))
    drain: Drain = app.state.drain
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as client:
        messages = [{"role": "user", "content": "?"}]
        body = {"model": "scripted", "messages": messages, "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            assert not drain.done
            drain.begin()
            refused = await client.post("/v1/chat/completions", json=body)
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert refused.headers["connection"] == "close"
            assert refused.json()["error"]["code"] == "server_going_down"
            ready = await client.get("/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "going down")
            assert (await client.get("/health")).status_code == 200
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"stop"' in rest[-2]
        await until(lambda: drain.done)
