from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.api.chat.request import ChatRequest
from service.api.structured_outputs import one_of
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from tests.support.scripted import EOS, RefusingEngine, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, make_app, serve
from tests.support.thinking import ThinkingEngine

STRUCTURES = frozenset({"json_schema", "regex", "grammar"})
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
GRAMMAR = 'root ::= "yes" | "no"'
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
CODE = "I compute it.\n```python\nprint(6 * 7)\n```<tool_call>"


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    )


def engine(*turns: str) -> ScriptedEngine:
    scripted = ScriptedEngine(*turns)
    scripted.capabilities = STRUCTURES
    return scripted


async def post(served: Served, path: str, json: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
        return await client.post(path, json=json)


def sandbox() -> ScriptedSandbox:
    return ScriptedSandbox(lambda blocks: printed("42"))


@pytest.mark.parametrize(
    ("fields", "kind", "text", "param"),
    [
        ({"guided_regex": "[0-9]+"}, "regex", "[0-9]+", "guided_regex"),
        ({"guided_choice": ["a.b", "c"]}, "regex", r"a\.b|c", "guided_choice"),
        ({"guided_grammar": GRAMMAR}, "grammar", GRAMMAR, "guided_grammar"),
        ({"grammar": GRAMMAR}, "grammar", GRAMMAR, "grammar"),
        ({"guided_json": SCHEMA}, "json_schema", json.dumps(SCHEMA), "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", json.dumps(SCHEMA), "guided_json"),
        ({"json_schema": SCHEMA}, "json_schema", json.dumps(SCHEMA), "json_schema"),
        ({"structured_outputs": {"regex": "a"}}, "regex", "a", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"]}}, "regex", "a", "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "g"}}, "grammar", "g", "structured_outputs.grammar"),
        (
            {"structured_outputs": {"json": SCHEMA}},
            "json_schema",
            json.dumps(SCHEMA),
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"json_object": True}},
            "json_schema",
            '{"type": "object"}',
            "structured_outputs.json_object",
        ),
        ({"response_format": FORM}, "json_schema", json.dumps(SCHEMA), "response_format"),
    ],
)
def test_every_name_of_a_constraint_is_read(fields: Any, kind: str, text: str, param: str) -> None:
    structure = request(**fields).structure
    assert structure is not None
    assert (structure.kind, structure.text, structure.param) == (kind, text, param)
    assert not request(**fields).deferred
    assert request(**fields, deferral={"enabled": True}).deferred


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"guided_regex": "", "guided_grammar": "", "grammar": "", "guided_choice": [], "json_schema": {}},
        {"structured_outputs": {}},
        {"structured_outputs": None, "guided_json": None},
    ],
)
def test_neutral_values_constrain_nothing(fields: dict[str, Any]) -> None:
    assert request(**fields).structure is None
    assert request(**fields).deferred


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"guided_regex": "a", "guided_choice": ["a"]}, ".guided_choice"),
        ({"response_format": FORM, "grammar": GRAMMAR}, ".grammar"),
        ({"guided_json": {"type": "thing"}}, ".guided_json"),
        ({"guided_json": "{"}, ".guided_json"),
        ({"json_schema": {"type": 3}}, ".json_schema"),
        ({"structured_outputs": {"json": {"type": "thing"}}}, ".json"),
        ({"structured_outputs": {"regex": "a", "grammar": "b"}}, ".grammar"),
    ],
)
def test_unusable_constraints_are_rejected(fields: dict[str, Any], at: str) -> None:
    with pytest.raises(ValidationError) as caught:
        request(**fields)
    [error] = caught.value.errors()
    assert error["ctx"]["at"] == at


def test_structural_tags_are_rejected() -> None:
    with pytest.raises(ValidationError, match="not support"):
        request(structured_outputs={"structural_tag": "{}"})


@given(st.lists(st.text(min_size=1), min_size=1), st.text())
def test_choices_match_exactly_themselves(texts: list[str], other: str) -> None:
    pattern = re.compile(f"(?:{one_of(texts)})")
    assert all(pattern.fullmatch(text) for text in texts)
    assert bool(pattern.fullmatch(other)) == (other in texts)


@pytest.mark.parametrize("fields", [{"guided_regex": "[a-z]+"}, {"structured_outputs": {"regex": "[a-z]+"}}])
async def test_constraint_reaches_the_engine_on_every_route(fields: dict[str, Any]) -> None:
    scripted = engine("abc" + EOS)
    async with serve(make_app(scripted, sandbox())) as served:
        body = {"model": "scripted", **fields}
        chat = await post(
            served, "/v1/chat/completions", json={**body, "messages": [{"role": "user", "content": "hi"}]}
        )
        text = await post(served, "/v1/completions", json={**body, "prompt": "hi"})
    assert chat.status_code == text.status_code == 200
    assert [sampling.structure for _, sampling in scripted.calls] == [("regex", "[a-z]+")] * 2


async def test_rejected_constraint_names_its_field() -> None:
    refusing = RefusingEngine("")
    refusing.capabilities = STRUCTURES
    async with serve(make_app(refusing, sandbox())) as served:
        for deferral in ({}, {"enabled": True}):
            answer = await post(
                served,
                "/v1/chat/completions",
                json={
                    "model": "scripted",
                    "messages": [{"role": "user", "content": "hi"}],
                    "structured_outputs": {"grammar": GRAMMAR},
                    "deferral": deferral,
                    "stream": True,
                },
            )
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "structured_outputs.grammar"


async def test_chat_answers_by_schema_after_code_has_run() -> None:
    scripted = engine("{", CODE, "It is 42." + EOS, '{"n": 42}' + EOS)
    async with serve(make_app(scripted, sandbox())) as served:
        answer = await post(
            served,
            "/v1/chat/completions",
            json={
                "model": "scripted",
                "messages": [{"role": "user", "content": "6 * 7?"}],
                "response_format": FORM,
                "deferral": {"enabled": True},
            },
        )
    message = answer.json()["choices"][0]["message"]
    assert message["content"] == message["final_answer"] == '{"n": 42}'
    assert message["executed_tools"][0]["output"] == "42"
    assert message["reasoning"].startswith("I compute it.")
    assert "The final answer as JSON" in message["reasoning"]
    check, work, more, last = scripted.calls
    assert [call[1].structure is None for call in (check, work, more, last)] == [False, True, True, False]
    assert check[1].max_tokens == 1
    context = scripted.tokenizer.decode(last[0])
    assert context.endswith(
        f"It is 42.\n\nThe final answer as JSON that matches the schema {json.dumps(SCHEMA)}:\n"
    )
    usage = answer.json()["usage"]
    sampled = len(scripted.tokenizer.encode(CODE + "It is 42." + EOS, allow_special=True))
    assert usage["completion_tokens_details"]["reasoning_tokens"] == sampled


@pytest.mark.parametrize("streamed", [False, True])
async def test_responses_answer_by_schema_after_code_has_run(streamed: bool) -> None:
    scripted = engine("{", CODE, "It is 42." + EOS, '{"n": 42}' + EOS)
    fields: dict[str, Any] = {
        "model": "scripted",
        "input": "6 * 7?",
        "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
    }
    async with serve(make_app(scripted, sandbox())) as served:
        if streamed:
            stream = await served.openai.responses.create(**fields, stream=True)
            response = [event async for event in stream][-1].response  # type: ignore[union-attr]
        else:
            response = await served.openai.responses.create(**fields)
    assert response.output_text == '{"n": 42}'
    kinds = [item.type for item in response.output]
    assert kinds == ["reasoning", "code_interpreter_call", "reasoning", "message"]


WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object"}},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def with_functions(**fields: Any) -> dict[str, Any]:
    return {
        "model": "scripted",
        "messages": [{"role": "user", "content": "weather?"}],
        "tools": [WEATHER],
        "response_format": FORM,
        **fields,
    }


async def test_functions_can_be_called_before_an_answer_by_schema() -> None:
    scripted = engine("{", "Let me look." + CALL + EOS)
    async with serve(make_app(scripted, sandbox())) as served:
        answer = await post(served, "/v1/chat/completions", json=with_functions())
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert choice["message"]["content"] is None
    assert [sampling.structure is None for _, sampling in scripted.calls] == [False, True]


@pytest.mark.parametrize("streamed", [False, True])
async def test_answer_by_schema_replaces_the_text_beside_functions(streamed: bool) -> None:
    scripted = engine("{", "It is sunny, 42 degrees." + EOS, '{"n": 42}' + EOS)
    async with serve(make_app(scripted, sandbox())) as served:
        options: dict[str, Any] = with_functions(extra_body={"top_k": 3})
        if streamed:
            async with served.openai.chat.completions.stream(**options) as stream:
                choice = (await stream.get_final_completion()).choices[0]
        else:
            choice = (await served.openai.chat.completions.create(**options)).choices[0]
    assert (choice.message.content, choice.finish_reason) == ('{"n": 42}', "stop")
    context = scripted.tokenizer.decode(scripted.calls[-1][0])
    assert "42 degrees.\n\nThe final answer as JSON" in context
    assert EOS not in context


async def test_answer_by_schema_beside_functions_fits_the_limit() -> None:
    scripted = engine("{", "It is sunny.")
    async with serve(make_app(scripted, sandbox())) as served:
        answer = await post(served, "/v1/chat/completions", json=with_functions(max_tokens=5))
    choice = answer.json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "")
    assert len(scripted.calls) == 2


async def test_forced_call_has_no_text_to_constrain() -> None:
    scripted = engine(' {"city": "Paris"}}\n</tool_call>' + EOS)
    async with serve(make_app(scripted, sandbox())) as served:
        answer = await post(served, "/v1/chat/completions", json=with_functions(tool_choice="required"))
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert answer.headers["x-ih-grpo-ignored"] == "response_format"
    [(_, sampling)] = scripted.calls
    assert sampling.json_schema == '{"type": "object"}'


async def test_json_reply_may_follow_a_thought() -> None:
    thinking = ThinkingEngine("Hm.</think>", '{"n": 1}' + EOS)
    async with serve(make_app(thinking, sandbox())) as served:
        answer = await post(
            served,
            "/v1/chat/completions",
            json={
                "model": "scripted",
                "messages": [{"role": "user", "content": "hi"}],
                "response_format": FORM,
                "reasoning_effort": "high",
            },
        )
    message = answer.json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Hm.", '{"n": 1}')
    assert "x-ih-grpo-ignored" not in answer.headers


async def test_effort_is_ignored_where_the_checkpoint_was_trained_without_thinking() -> None:
    body: dict[str, Any] = {
        "model": "scripted",
        "messages": [{"role": "user", "content": "hi"}],
        "reasoning_effort": "high",
    }
    ignored = []
    for thinking in (False, True):
        scripted = ThinkingEngine("\\boxed{1}" + EOS)
        policy = DeferralPolicy(thinking=thinking, prompt="brief-v1")
        async with serve(make_app(scripted, sandbox(), policy)) as served:
            answer = await post(served, "/v1/chat/completions", json=body)
            ignored.append(answer.headers.get("x-ih-grpo-ignored"))
            response = await post(
                served,
                "/v1/responses",
                json={
                    "model": "scripted",
                    "input": "hi",
                    "reasoning": {"effort": "high"},
                    "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}],
                },
            )
            ignored.append(response.headers.get("x-ih-grpo-ignored"))
    assert ignored == ["reasoning_effort", "reasoning.effort", None, None]


async def test_budget_limits_the_thought() -> None:
    scripted = ThinkingEngine("<think>" + "x" * 20, "Done." + EOS)
    body: dict[str, Any] = {
        "model": "scripted",
        "messages": [{"role": "user", "content": "hi"}],
        "deferral": {"enabled": False},
        "enable_thinking": True,
        "thinking_budget": 5,
    }
    async with serve(make_app(scripted, sandbox())) as served:
        answer = await post(served, "/v1/chat/completions", json=body)
        plain = await post(served, "/v1/chat/completions", json={**body, "enable_thinking": None})
    message = answer.json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("xxxxx", "Done.")
    details = answer.json()["usage"]["completion_tokens_details"]
    assert details["observation_tokens"] == len("\n\n\n") + 1
    assert plain.headers["x-ih-grpo-ignored"] == "thinking_budget"


def test_sampling_has_one_structure() -> None:
    assert Sampling().structure is None
    assert Sampling(regex="a").structure == ("regex", "a")
    assert Sampling(grammar="g", max_tokens=3).without_structure() == Sampling(max_tokens=3)
