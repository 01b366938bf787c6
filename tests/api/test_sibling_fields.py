"""Fields of the other APIs: rejected with a hint if they would change the answer or its cost."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.api.chat.request import ChatRequest
from service.api.completions import CompletionRequest
from service.api.messages.request import CountTokensRequest, MessagesRequest
from service.api.responses.request import ResponseRequest
from service.api.validation import RequestModel
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve

TURNS: Any = [{"role": "user", "content": "hi"}]
CHAT: Any = ("/v1/chat/completions", ChatRequest, {"model": "scripted", "messages": TURNS})
RESPONSES: Any = ("/v1/responses", ResponseRequest, {"model": "scripted", "input": "hi"})
MESSAGES: Any = ("/v1/messages", MessagesRequest, {"model": "scripted", "messages": TURNS, "max_tokens": 9})
COMPLETIONS: Any = ("/v1/completions", CompletionRequest, {"model": "scripted", "prompt": "hi"})
SCHEMA = {"type": "object"}
REJECTED: list[tuple[Any, str, object, str]] = [
    (RESPONSES, "max_tokens", 5, "use 'max_output_tokens'"),
    (RESPONSES, "max_completion_tokens", 5, "use 'max_output_tokens'"),
    (RESPONSES, "stop", ["x"], "use /v1/chat/completions"),
    (RESPONSES, "response_format", {"type": "json_object"}, "use 'text.format'"),
    (RESPONSES, "n", 2, "use /v1/chat/completions"),
    (RESPONSES, "logit_bias", {"5": 1}, "use /v1/chat/completions"),
    (RESPONSES, "guided_json", SCHEMA, "use 'text.format'"),
    (RESPONSES, "stop_token_ids", [4], "use /v1/chat/completions"),
    (RESPONSES, "messages", TURNS, "use 'input'"),
    (RESPONSES, "reasoning_effort", "high", "use 'reasoning.effort'"),
    (RESPONSES, "chat_template_kwargs", {"enable_thinking": True}, "use 'reasoning.effort'"),
    (RESPONSES, "typical_p", 0.9, "this server does not support it"),
    (CHAT, "max_output_tokens", 5, "use 'max_completion_tokens'"),
    (CHAT, "system", "Be brief.", "use a message of role 'system'"),
    (CHAT, "instructions", "Be brief.", "use a message of role 'system'"),
    (CHAT, "stop_sequences", ["x"], "use 'stop'"),
    (CHAT, "text", {"format": {"type": "json_object"}}, "use 'response_format'"),
    (CHAT, "previous_response_id", "resp_1", "use /v1/responses"),
    (CHAT, "background", True, "use /v1/responses"),
    (MESSAGES, "stop", "x", "use 'stop_sequences'"),
    (MESSAGES, "response_format", {"type": "json_object"}, "use 'output_config.format'"),
    (MESSAGES, "instructions", "Be brief.", "use 'system'"),
    (MESSAGES, "max_completion_tokens", 5, "use 'max_tokens'"),
    (MESSAGES, "parallel_tool_calls", False, "use 'tool_choice.disable_parallel_tool_use'"),
    (COMPLETIONS, "tools", [{"type": "function", "function": {"name": "f"}}], "use /v1/chat/completions"),
    (COMPLETIONS, "messages", TURNS, "use 'prompt', or /v1/chat/completions"),
    (COMPLETIONS, "max_completion_tokens", 5, "use 'max_tokens'"),
]
NEUTRAL: list[tuple[Any, dict[str, Any]]] = [
    (RESPONSES, {"max_tokens": None, "n": 1, "stop": [], "response_format": {"type": "text"}}),
    (RESPONSES, {"logit_bias": {}, "repetition_penalty": 1.0, "enable_thinking": False, "n_predict": -1}),
    (CHAT, {"system": "", "previous_response_id": None, "background": False, "text": {}}),
    (MESSAGES, {"n": 1, "stop": None, "parallel_tool_calls": True, "chat_template_kwargs": {}}),
    (COMPLETIONS, {"tools": [], "tool_choice": "auto", "deferral": {"enabled": False}}),
]


@pytest.fixture
async def http() -> Any:
    app = make_app(ScriptedEngine("Hello." + EOS), ScriptedSandbox(lambda blocks: printed("")))
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as client:
        yield client


def error_of(model: type[RequestModel], body: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    return dict(caught.value.errors()[0])


@pytest.mark.parametrize(
    ("api", "name", "value", "hint"), REJECTED, ids=[f"{row[0][0]}-{row[1]}" for row in REJECTED]
)
def test_field_of_another_api_is_rejected_with_a_hint(api: Any, name: str, value: object, hint: str) -> None:
    error = error_of(api[1], {**api[2], name: value})
    assert (error["type"], error["ctx"]["at"]) == ("unsupported_parameter", f".{name}")
    assert hint in error["msg"]


def test_count_tokens_rejects_the_fields_that_messages_rejects() -> None:
    body = {name: value for name, value in MESSAGES[2].items() if name != "max_tokens"}
    assert error_of(CountTokensRequest, {**body, "instructions": "x"})["ctx"]["at"] == ".instructions"


async def test_error_names_the_field(http: httpx.AsyncClient) -> None:
    for path, body, name in ((*RESPONSES[::2], "max_tokens"), (*CHAT[::2], "max_output_tokens")):
        answer = await http.post(path, json={**body, name: 5})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter")
        assert error["message"].startswith(f"'{name}': this API has no such field; use '")


@pytest.mark.parametrize(("api", "fields"), NEUTRAL)
async def test_neutral_values_are_accepted(http: httpx.AsyncClient, api: Any, fields: dict[str, Any]) -> None:
    path, _, body = api
    answer = await http.post(path, json={**body, **fields})
    assert answer.status_code == 200, answer.text


def test_booleans_and_numbers_are_different_values() -> None:
    assert error_of(RESPONSES[1], {**RESPONSES[2], "n": True})["ctx"]["at"] == ".n"
    assert error_of(RESPONSES[1], {**RESPONSES[2], "ignore_eos": 0})["ctx"]["at"] == ".ignore_eos"


def test_typo_of_a_rejected_field_gets_no_suggestion() -> None:
    error = error_of(COMPLETIONS[1], {**COMPLETIONS[2], "sufix": "x"})
    assert (error["type"], error["ctx"]["hint"]) == ("unknown_parameter", "")
    assert "'top_k'" in error_of(CHAT[1], {**CHAT[2], "top_b": 1})["ctx"]["hint"]
