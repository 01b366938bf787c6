"""Fields, codes and hints of errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]},
    RESPONSES: {"model": "scripted", "input": "hi"},
}
FLAT: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}}
NESTED: Any = {"type": "function", "function": {"name": "f"}}
OUTPUT: Any = {"type": "function_call_output", "call_id": "c9", "output": "x"}
CALL: Any = {"type": "function_call", "call_id": "c9", "name": "f", "arguments": "{}"}


@pytest.fixture
async def http() -> AsyncGenerator[httpx.AsyncClient, None]:
    app = make_app(ScriptedEngine("Hello." + EOS), ScriptedSandbox(lambda blocks: printed("")))
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "fields", "param", "words"),
    [
        (CHAT, {"tools": [FLAT]}, "tools[0].name", "'function.name'"),
        (CHAT, {"tools": [{"type": "custom", "name": "f"}]}, "tools[0].name", "'custom.name'"),
        (CHAT, {"tools": [NESTED], "tool_choice": FLAT}, "tool_choice.name", "'function.name'"),
        (RESPONSES, {"tools": [NESTED]}, "tools[0].function", "beside its 'type'"),
        (RESPONSES, {"tools": [FLAT], "tool_choice": NESTED}, "tool_choice.function", "beside its 'type'"),
        (RESPONSES, {"text": {"format": {"type": "grammar"}}}, "text.format", "'json_schema' only"),
        (CHAT, {"response_format": {"type": "grammar"}}, "response_format", "'json_schema' only"),
        (CHAT, {"response_format": {}}, "response_format", "'json_schema' only"),
        (RESPONSES, {"input": [{"role": "user", "content": "a"}, OUTPUT]}, "input[1].call_id", "id 'c9'"),
    ],
)
async def test_hint(
    http: httpx.AsyncClient, path: str, fields: dict[str, Any], param: str, words: str
) -> None:
    answer = await http.post(path, json={**BODIES[path], **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert "Input tag" not in error["message"]


async def test_outputs_of_known_calls_are_accepted(http: httpx.AsyncClient) -> None:
    body = {**BODIES[RESPONSES], "input": [{"role": "user", "content": "a"}, CALL, OUTPUT]}
    assert (await http.post(RESPONSES, json=body)).status_code == 200


async def test_codes(http: httpx.AsyncClient) -> None:
    broken = await http.post(CHAT, content='{"model": ', headers={"content-type": "application/json"})
    missing = await http.get(f"{RESPONSES}/resp_{'0' * 32}")
    reference = {"type": "item_reference", "id": f"msg_{'0' * 32}_0"}
    item = await http.post(RESPONSES, json={**BODIES[RESPONSES], "input": [reference]})
    codes = [(answer.status_code, answer.json()["error"]["code"]) for answer in (broken, missing, item)]
    assert codes == [(400, "invalid_body"), (404, "response_not_found"), (404, "item_not_found")]


@pytest.mark.parametrize(
    ("options", "effort"),
    [
        (None, "none"),
        ({"effort": "high"}, "high"),
        ({"effort": "low"}, "low"),
        ({"effort": "minimal"}, "minimal"),
        ({"effort": "medium", "max_tokens": 0}, "none"),
    ],
)
async def test_response_reports_the_effort(
    http: httpx.AsyncClient, options: dict[str, Any] | None, effort: str
) -> None:
    answer = await http.post(RESPONSES, json={**BODIES[RESPONSES], "reasoning": options})
    assert answer.json()["reasoning"]["effort"] == effort
