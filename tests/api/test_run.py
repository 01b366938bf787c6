from __future__ import annotations

from typing import Any

import httpx

from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve


def value(text: str, name: str) -> float:
    [line] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.rsplit(" ", 1)[1])


async def test_every_request_is_timed_and_the_wait_for_code_is_no_time_between_tokens() -> None:
    engine = ScriptedEngine("```python\nprint(1)\n```<tool_call>", "\\boxed{1}" + EOS)
    app = make_app(engine, ScriptedSandbox(lambda blocks: printed("1"), delay_s=0.3))
    messages: Any = [{"role": "user", "content": "?"}]
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as client:
        await served.openai.chat.completions.create(model="scripted", messages=messages, n=1)
        text = (await client.get("/metrics")).text
    assert value(text, "ihgrpo_first_token_seconds_count") == 1
    assert value(text, "ihgrpo_queue_seconds_count") == 1
    sampled = value(text, "ihgrpo_sampled_tokens_total")
    # One fewer than tokens in each of two turns, and one more is lost at the invocation.
    assert value(text, "ihgrpo_inter_token_seconds_count") == sampled - 3
    assert 'ihgrpo_request_seconds_count{route="/v1/chat/completions"} 1.0' in text
    slow = 'ihgrpo_inter_token_seconds_bucket{le="0.25"}'
    assert value(text, slow) == sampled - 3
