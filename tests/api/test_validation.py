from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.api.chat.request import ChatRequest
from service.api.responses.request import ResponseRequest
from service.api.validation import ValidationReport, current, unreported
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve

MESSAGES: Any = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "scripted", "messages": MESSAGES}
HEADER = "x-ih-grpo-ignored"
HARMLESS: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": "user", "name": "bob", "content": "hi"}]}, "messages[0].name"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"a": 1}}]}
            ]
        },
        "messages[0].content[0].cache_control",
    ),
    (
        {
            "messages": [
                *MESSAGES,
                {"role": "assistant", "content": "x", "provider_specific_fields": {}},
                *MESSAGES,
            ]
        },
        "messages[1].provider_specific_fields",
    ),
    ({"models": ["other"], "provider": {"order": []}}, "models, provider"),
    ({"store": True, "service_tier": "flex", "verbosity": "low"}, "store, service_tier, verbosity"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs.tools"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "x": 1}, "cache_control": {}}]},
        "tools[0].function.x, tools[0].cache_control",
    ),
    ({"tools": [{"type": "web_search_preview"}]}, "tools[0]"),
]
NEUTRAL: dict[str, Any] = {
    "skip_special_tokens": True,
    "ignore_eos": False,
    "min_tokens": 0,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "cache_prompt": True,
    "n_predict": -1,
    "typical_p": 1.0,
    "mirostat": 0,
    "deferral": None,
    "chat_template_kwargs": None,
    "stream_options": {"include_usage": None},
    "tools": None,
    "tool_choice": "auto",
    "top_logprobs": 0,
}


@pytest.fixture
async def client(request: pytest.FixtureRequest) -> Any:
    options = getattr(request, "param", {})
    app = make_app(ScriptedEngine("Hello." + EOS), ScriptedSandbox(lambda blocks: printed("")), **options)
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as http:
        yield http


async def chat(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    # Lone surrogates must arrive as they are written, so httpx may not encode them.
    return await client.post(
        "/v1/chat/completions",
        content=json.dumps({**CHAT, **fields}),
        headers={"content-type": "application/json"},
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_fields_without_effect_are_ignored_and_reported(
    client: httpx.AsyncClient, stream: bool
) -> None:
    for fields, paths in HARMLESS:
        if stream and "stream_options" in fields:
            continue
        answer = await chat(client, **fields, **({"stream": True} if stream else {}))
        assert answer.status_code == 200, answer.text
        assert answer.headers[HEADER] == paths
    metrics = (await client.get("/metrics")).text
    assert 'ihgrpo_ignored_fields_total{field="unknown"}' in metrics
    assert 'ihgrpo_ignored_fields_total{field="name"} 1.0' in metrics


async def test_neutral_extras_are_accepted(client: httpx.AsyncClient) -> None:
    for name, value in NEUTRAL.items():
        answer = await chat(client, **{name: value})
        assert answer.status_code == 200, (name, answer.text)
    assert HEADER not in (await chat(client, **{**NEUTRAL, "stream_options": None})).headers


@pytest.mark.parametrize("client", [{"strict_requests": True}], indirect=True)
async def test_strict_requests_restore_rejection(client: httpx.AsyncClient) -> None:
    for fields, paths in HARMLESS:
        answer = await chat(client, **fields)
        if "stream_options" in fields:
            continue
        assert answer.status_code == 400, (fields, answer.text)
        error = answer.json()["error"]
        assert error["code"] in ("unknown_parameter", "unsupported_parameter")
        assert error["param"] in paths.split(", ")
    assert (await chat(client, temperature=0, user="me")).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "meant"),
    [
        ({"temprature": 0}, "temprature", "temperature"),
        ({"max_tokns": 5}, "max_tokns", "max_tokens"),
        ({"tool_choise": "auto"}, "tool_choise", "tool_choice"),
        ({"deferal": {}}, "deferal", "deferral"),
        ({"deferral": {"eagre": True}}, "deferral.eagre", "eager"),
        ({"messages": [{"role": "user", "contnet": "hi"}]}, "messages[0].contnet", "content"),
        ({"messages": [{"rloe": "user", "content": "hi"}]}, "messages[0].rloe", "role"),
        ({"tools": [{"type": "function", "function": {"name": "f", "paramters": {}}}]},
         "tools[0].function.paramters", "parameters"),
        ({"stream_options": {"include_usages": True}}, "stream_options.include_usages", "include_usage"),
    ],
)  # fmt: skip
async def test_typo_gets_a_suggestion(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, meant: str
) -> None:
    answer = await chat(client, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "unknown_parameter")
    assert f"Did you mean '{meant}'?" in error["message"]


async def test_short_names_are_not_typos(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "hi", "id": "1", "date": "x", "context": "y", "type": "text"}]
    answer = await chat(client, messages=messages, id="x", models=["a"], ts=1, type="chat")
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "hi \ud83d"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}]},
         "messages[0].content[0].text"),
        ({"tools": [{"type": "function", "function": {"name": "f", "description": "\ud83d"}}]},
         "tools[0].function.description"),
        ({"stop": "\ud83d"}, "stop"),
        ({"user": "\ud83d"}, "user"),
    ],
)  # fmt: skip
async def test_lone_surrogates_name_their_field(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    answer = await chat(client, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await chat(client, messages=[{"role": "user", "content": "\ud83d\ude00"}])).status_code == 200


async def test_field_names_cannot_break_the_header(client: httpx.AsyncClient) -> None:
    names = {f"x\r\nset-cookie: {number}, é": 1 for number in range(500)}
    answer = await chat(client, **names)
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert len(answer.headers[HEADER]) < 1300
    assert answer.headers[HEADER].isascii()
    assert "more" in answer.headers[HEADER]


async def test_sdk_raises_the_error(client: httpx.AsyncClient) -> None:
    sdk = openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="Did you mean") as caught:
        await sdk.chat.completions.create(**CHAT, extra_body={"seeed": 1})
    assert caught.value.param == "seeed"
    await sdk.close()


@pytest.fixture
def reading() -> Iterator[ValidationReport]:
    noted = ValidationReport()
    token = current.set(noted)
    yield noted
    current.reset(token)


def test_internal_requests_are_not_reported(reading: ValidationReport) -> None:
    with unreported():
        ChatRequest.model_validate({**CHAT, "zzzzz": 1})
    assert reading.labels == {}
    ChatRequest.model_validate({**CHAT, "zzzzz": 1})
    assert reading.labels == {"unknown": 1}


def test_name_comparisons_are_bounded(reading: ValidationReport) -> None:
    ChatRequest.model_validate({**CHAT, **{f"zzzzz{number}": 1 for number in range(2000)}})
    assert reading.lookups == 0
    assert reading.labels == {"unknown": 2000}
    assert len(reading.header()) < 1300


@given(st.dictionaries(st.text(max_size=20), st.none() | st.integers() | st.text(max_size=5), max_size=5))
def test_any_extra_field_is_accepted_or_rejected_by_name(extra: dict[str, Any]) -> None:
    extra = {
        name: value
        for name, value in extra.items()
        if name not in {*ChatRequest.model_fields, *ResponseRequest.model_fields}
    }
    for model, body in ((ChatRequest, CHAT), (ResponseRequest, {"model": "m", "input": "hi"})):
        try:
            model.model_validate({**extra, **body})
        except ValidationError as error:
            kinds = {item["type"] for item in error.errors()}
        else:
            kinds = set()
        assert kinds <= {"unknown_parameter", "unsupported_parameter", "invalid_value"}
