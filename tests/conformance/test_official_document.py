"""Responses of this server, checked against OpenAI's OpenAPI document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from service.api.chat.request import ChatRequest
from tests.conformance import official
from tests.conformance.conftest import KEY
from tests.conformance.suite import schemathesis

HEADERS = {"Authorization": f"Bearer {KEY}"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
QUESTIONS: dict[str, dict[str, Any]] = {
    "deferred": {"content": "6 * 7?"},
    "plain": {"content": "Hi"},
    "thinking": {"content": "Think"},
    "logprobs": {"content": "Hi", "logprobs": True, "top_logprobs": 2},
    "tools": {"content": "weather?", "tools": [WEATHER]},
    "json": {"content": "JSON", "response_format": {"type": "json_object"}},
    "several": {"content": "Hi", "n": 2, "stop": "are"},
}


def body(question: dict[str, Any], **more: Any) -> dict[str, Any]:
    fields = {name: value for name, value in question.items() if name != "content"}
    return {
        "model": "scripted",
        "messages": [{"role": "user", "content": question["content"]}],
        **fields,
        **more,
    }


def check(name: str, answer: Any) -> None:
    errors = jsonschema_rs.validator_for(official.schema(name), offline=True).iter_errors(answer)
    assert [f"{error.instance_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize("name", QUESTIONS)
def test_completion_matches_openais_schema(url: str, name: str) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", json=body(QUESTIONS[name]), headers=HEADERS)
    assert answer.status_code == 200, answer.text
    check("CreateChatCompletionResponse", answer.json())


@pytest.mark.parametrize("name", QUESTIONS)
def test_chunks_match_openais_schema(url: str, name: str) -> None:
    asked = body(QUESTIONS[name], stream=True, stream_options={"include_usage": True})
    answer = httpx.post(f"{url}/v1/chat/completions", json=asked, headers=HEADERS)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert len(events) > 4
    for event in events[:-1]:
        chunk = json.loads(event)
        # OpenAI sends these nulls, and its words promise the first; its schema forgets them.
        for holder, name in [(chunk, "usage"), *((choice, "logprobs") for choice in chunk["choices"])]:
            if holder[name] is None:
                del holder[name]
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
            if "logprobs" in choice:
                choice["logprobs"]["refusal"] = choice["logprobs"]["refusal"] or []
        check("CreateChatCompletionStreamResponse", chunk)


def test_models_match_openais_schema(url: str) -> None:
    check("ListModelsResponse", httpx.get(f"{url}/v1/models", headers=HEADERS).json())
    check("Model", httpx.get(f"{url}/v1/models/scripted", headers=HEADERS).json())


def test_all_openai_fields_are_known() -> None:
    assert official.fields() - set(ChatRequest.model_fields) == set()


def served(url: str) -> float:
    """Chat completions that were answered so far."""
    text = httpx.get(f"{url}/metrics", headers=HEADERS).text
    wanted = 'ihgrpo_requests_total{route="/v1/chat/completions",status="200"}'
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(wanted))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_schemathesis_finds_no_failures(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests drawn from OpenAI's schema, cut down to what this server has."""
    monkeypatch.setenv("SCHEMATHESIS_HOOKS", "tests.conformance.hooks")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    document = tmp_path / "openai.json"
    document.write_text(json.dumps(official.pruned()))
    before = served(url)
    options = ("--mode", "positive", "--phases", "examples,fuzzing", "--max-examples", "30")
    checks = ("--checks", "not_a_server_error,response_schema_conformance")
    run = schemathesis(str(document), f"{url}/v1", tmp_path, *options, *checks)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert served(url) - before > 20, run.stdout
