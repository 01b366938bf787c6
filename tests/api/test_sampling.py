"""Sampling fields of requests."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.engines.base import OPTIONAL_SAMPLING
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve

TURNS: Any = [{"role": "user", "content": "hi"}]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": TURNS}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/responses", {"input": "hi"}),
    ("/v1/messages", {"messages": TURNS, "max_tokens": 9}),
]


async def posted(path: str, body: dict[str, Any]) -> tuple[ScriptedEngine, httpx.Response]:
    engine = ScriptedEngine("Hello." + EOS)
    engine.capabilities = frozenset(OPTIONAL_SAMPLING)
    app = make_app(engine, ScriptedSandbox(lambda blocks: printed("")))
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as http:
        return engine, await http.post(path, json={"model": "scripted", **body})


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_top_p_of_0_leaves_the_most_likely_token(path: str, body: dict[str, Any]) -> None:
    engine, answer = await posted(path, {**body, "top_p": 0})
    assert answer.status_code == 200, answer.text
    assert 0 < engine.calls[0][1].top_p <= 1e-6
    assert answer.json().get("top_p", 0) == 0


@pytest.mark.parametrize(("path", "body"), REQUESTS[:2])
async def test_repeat_penalty_is_an_alias(path: str, body: dict[str, Any]) -> None:
    engine, _ = await posted(path, {**body, "repeat_penalty": 1.2})
    assert engine.calls[0][1].repetition_penalty == 1.2
    engine, _ = await posted(path, {**body, "repeat_penalty": 1.2, "repetition_penalty": 1.1})
    assert engine.calls[0][1].repetition_penalty == 1.1
