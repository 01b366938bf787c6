"""``POST /v1/responses/input_tokens``, and ``POST /v1/responses/compact``."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.support.responses_api import CODE_TOOL, ask, engine, serving
from tests.support.scripted import EOS, ScriptedEngine

FUNCTION: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"instructions": "Be brief."},
        {"tools": [FUNCTION]},
        {"tools": [FUNCTION], "tool_choice": "required"},
        {"tools": CODE_TOOL},
    ],
)
async def test_count_equals_the_input_tokens_of_the_response(options: dict[str, Any]) -> None:
    async with serving(ScriptedEngine(" {}}\n</tool_call>" + EOS)) as served:
        response = await ask(served, "Hi", **options)
        counted = await served.openai.responses.input_tokens.count(model="scripted", input="Hi", **options)
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", response.usage.input_tokens)


async def test_earlier_responses_are_counted() -> None:
    async with serving(engine()) as served:
        first = await ask(served, tools=CODE_TOOL)
        options: Any = {"previous_response_id": first.id, "tools": CODE_TOOL}
        second = await ask(served, "Thanks.", **options)
        counted = await served.openai.responses.input_tokens.count(input="Thanks.", **options)
        with pytest.raises(openai.NotFoundError) as caught:
            await served.openai.responses.input_tokens.count(input="Hi", previous_response_id="resp_x")
    assert counted.input_tokens == second.usage.input_tokens
    assert caught.value.code == "previous_response_not_found"


async def test_compact_is_an_unknown_url_with_a_hint() -> None:
    async with serving(engine()) as served:
        with pytest.raises(openai.NotFoundError, match="truncation") as caught:
            await served.openai.responses.compact(model="scripted", input="Hi")
    assert caught.value.code == "unknown_url"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_compact_is_an_unknown_url_for_every_method(method: str) -> None:
    async with serving(engine()) as served, httpx.AsyncClient(base_url=served.url) as http:
        answer = await http.request(method, "/v1/responses/compact")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    assert f"{method} /v1/responses/compact" in answer.json()["error"]["message"]
    assert "allow" not in answer.headers


async def test_allowed_methods_are_those_of_the_route_itself() -> None:
    async with serving(engine()) as served, httpx.AsyncClient(base_url=served.url) as http:
        answer = await http.put("/v1/responses/input_tokens")
        of_response = await http.put("/v1/responses/resp_1")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "DELETE" in of_response.headers["allow"]


@pytest.mark.parametrize("body", [{}, {"input": []}])
async def test_previous_response_needs_no_input(body: dict[str, Any]) -> None:
    scripted = ScriptedEngine("Hello." + EOS, "Again." + EOS)
    async with serving(scripted) as served:
        first = await ask(served, "Hi")
        raw = served.openai.responses.with_raw_response
        second = await raw.create(model="scripted", previous_response_id=first.id, **body)
        with pytest.raises(openai.BadRequestError, match="without 'previous_response_id'") as caught:
            await raw.create(model="scripted", **body)
    assert second.http_response.json()["output"][0]["content"][0]["text"] == "Again."
    assert "Hello." in scripted.tokenizer.decode(scripted.calls[1][0])
    assert caught.value.param == "input"
