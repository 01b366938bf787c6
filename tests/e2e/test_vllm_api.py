"""JSON by schema, the client's own functions and adapters as models, on vLLM itself, through the SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.e2e.server import ServerProcess
from tests.support.caller_adapter import CITIES, QUESTION, TOOLS

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.docker, pytest.mark.timeout(2000)]
CALLS = [("weather", {"city": city}) for city in CITIES]
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
CITY: Any = {
    "type": "function",
    "function": {
        "name": "city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Ulm", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
PLAIN: Any = {"deferral": {"enabled": False}}


class Verdict(BaseModel):
    """A form of which no part can be endless."""

    answer: int = Field(ge=0, le=99)
    unit: Literal["m", "s"]
    sure: bool


@pytest.fixture(params=["vllm", "remote"])
def client(request: pytest.FixtureRequest, vllm_servers: dict[str, ServerProcess]) -> Iterator[openai.OpenAI]:
    url = f"{vllm_servers[request.param].url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as made:
        yield made


def ask(client: openai.OpenAI, question: str = "What is 12 + 30?", **options: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    asked = {"model": "quickstart", "messages": messages, "temperature": 0, "max_tokens": 150, **options}
    return client.chat.completions.create(**asked)


def calls(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


def test_reply_matches_the_schema(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="quickstart",
        messages=[{"role": "user", "content": "What is 12 + 30?"}],
        response_format=Verdict,
        seed=3,
        n=3,
        max_tokens=150,
    )
    assert [choice.finish_reason for choice in reply.choices] == ["stop"] * 3
    assert all(isinstance(choice.message.parsed, Verdict) for choice in reply.choices)
    # One line, with the spacing that models are trained on: with free white space a small model never stops.
    for choice in reply.choices:
        text = choice.message.content or ""
        assert text == json.dumps(json.loads(text))


def test_streamed_reply_matches_the_schema(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="quickstart",
        messages=[{"role": "user", "content": "What is 12 + 30?"}],
        response_format=Verdict,
        max_tokens=150,
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(deltas) > 3
    assert final.choices[0].message.parsed == Verdict.model_validate_json("".join(deltas))


def test_json_object_format(client: openai.OpenAI) -> None:
    reply = ask(client, response_format={"type": "json_object"}, seed=2, temperature=1, max_tokens=300)
    [choice] = reply.choices
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_rejects_schemas_that_vllm_does_not_support(client: openai.OpenAI) -> None:
    schema = {"type": "array", "contains": {"const": 1}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="contains") as caught:
        ask(client, response_format=form)
    assert (caught.value.param, caught.value.code) == ("response_format", "invalid_value")
    assert "http://" not in str(caught.value)
    assert ask(client, max_tokens=3, extra_body=PLAIN).choices[0].finish_reason == "length"


@pytest.mark.parametrize("name", ["clock", "city"])
def test_named_function_is_called(client: openai.OpenAI, name: str) -> None:
    named = {"type": "function", "function": {"name": name}}
    [choice] = ask(client, tools=[CITY, CLOCK], tool_choice=named).choices
    [(called, arguments)] = calls(choice.message)
    assert (choice.finish_reason, called) == ("tool_calls", name)
    assert arguments in ({"zone": "UTC"}, {"zone": "CET"}, {"city": "Ulm"}, {"city": "Oslo"})
    assert choice.message.content is None


def test_required_choice_calls_one_of_several_functions(client: openai.OpenAI) -> None:
    reply = ask(client, tools=[CITY, CLOCK], tool_choice="required", n=3, temperature=1, seed=1)
    for choice in reply.choices:
        [(called, arguments)] = calls(choice.message)
        assert choice.finish_reason == "tool_calls"
        assert arguments.keys() == ({"city"} if called == "city" else {"zone"})


def test_trained_adapter_calls_both_functions_at_once(client: openai.OpenAI) -> None:
    [choice] = ask(client, QUESTION, model="caller", tools=TOOLS).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert calls(choice.message) == CALLS
    assert len({call.id for call in choice.message.tool_calls}) == 2


def test_trained_adapter_calls_one_function_at_a_time(client: openai.OpenAI) -> None:
    [choice] = ask(client, QUESTION, model="caller", tools=TOOLS, parallel_tool_calls=False).choices
    assert choice.finish_reason == "tool_calls"
    assert calls(choice.message) == CALLS[:1]


def test_trained_adapter_calls_no_function(client: openai.OpenAI) -> None:
    [choice] = ask(client, QUESTION, model="caller", tools=TOOLS, tool_choice="none", max_tokens=9).choices
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "length")


def test_streamed_calls_add_up(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="caller",
        messages=[{"role": "user", "content": QUESTION}],
        tools=TOOLS,
        temperature=0,
        max_tokens=150,
    ) as stream:
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion()
    assert len(pieces) > 4
    assert calls(final.choices[0].message) == CALLS


def test_adapters_are_listed_as_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["quickstart", "caller"]
    texts = {
        model: ask(client, model=model, max_tokens=20, extra_body=PLAIN).choices[0].message.content
        for model in ("quickstart", "caller")
    }
    assert texts["quickstart"] != texts["caller"]
    for unknown in ("nobody", "Caller"):
        with pytest.raises(openai.NotFoundError, match=f"'{unknown}' does not exist.*'quickstart', 'caller'"):
            ask(client, model=unknown)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(unknown)


def test_responses_api_supports_schemas_and_functions(client: openai.OpenAI) -> None:
    asked: Any = {"model": "caller", "temperature": 0, "max_output_tokens": 150}
    parsed = client.responses.parse(input="12 + 30?", text_format=Verdict, **{**asked, "model": "quickstart"})
    assert isinstance(parsed.output_parsed, Verdict)
    function = {"type": "function", **TOOLS[0]["function"]}
    reply = client.responses.create(input=QUESTION, tools=[function], **asked)
    made = [item for item in reply.output if item.type == "function_call"]
    assert [(item.name, json.loads(item.arguments)) for item in made] == CALLS
    text: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "array", "contains": {}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(input="?", text=text, **asked)
    assert caught.value.param == "text.format"
