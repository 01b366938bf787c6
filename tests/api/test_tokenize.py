from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx
import pytest

from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient, None]:
    app = make_app(ScriptedEngine("Hello." + EOS), ScriptedSandbox(lambda blocks: printed("")))
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as http:
        yield http


async def test_text_round_trips(client: httpx.AsyncClient) -> None:
    text = "Grüß dich<tool_call>"
    tokens = (await client.post("/tokenize", json={"model": "scripted", "prompt": text})).json()
    assert tokens["count"] == len(tokens["tokens"]) == 10
    assert tokens["max_model_len"] == 10_000
    assert tokens["token_strs"] is None
    back = await client.post("/detokenize", json={"model": "scripted", "tokens": tokens["tokens"]})
    info = (await client.get("/tokenizer_info")).json()
    assert (info["eos_token"], info["bos_token"]) == ("<|im_end|>", None)
    assert back.json() == {"prompt": text}
    named = await client.post("/tokenize", json={"prompt": "hi", "return_token_strs": True})
    assert named.json()["token_strs"] == ["h", "i"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"deferral": {"enabled": False}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ],
)
async def test_messages_are_tokenized_as_in_a_chat_request(
    client: httpx.AsyncClient, options: dict[str, object]
) -> None:
    counted = (await client.post("/tokenize", json={"messages": MESSAGES, **options})).json()
    chat = {"model": "scripted", "messages": MESSAGES, **options}
    usage = (await client.post("/v1/chat/completions", json=chat)).json()["usage"]
    assert counted["count"] == usage["prompt_tokens"]


@pytest.mark.parametrize(
    ("route", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "x", "model": "other"}, 404, "model"),
        ("/tokenize", {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"promt": "x"}, 400, "promt"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, 2**30]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": "x"}, 400, "tokens"),
    ],
)
async def test_errors_name_their_field(
    client: httpx.AsyncClient, route: str, body: dict[str, object], status: int, param: str
) -> None:
    answer = await client.post(route, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
