"""Anthropic's Python SDK."""

from __future__ import annotations

import anthropic
from harness import BASE_URL, CITY_SCHEMA, HELLO, KEY, MODEL, PLACE_SCHEMA, feature, run, user
from pydantic import BaseModel

client = anthropic.Anthropic(base_url=BASE_URL.removesuffix("/v1"), api_key=KEY, max_retries=0)
WEATHER = {"name": "get_weather", "description": "Weather of a city.", "input_schema": CITY_SCHEMA}
CODE = {"type": "code_execution_20250522", "name": "code_execution"}


def create(messages, **options):
    return client.messages.create(**{"model": MODEL, "max_tokens": 900, "messages": messages, **options})


def stream(messages, **options):
    return client.messages.stream(**{"model": MODEL, "max_tokens": 900, "messages": messages, **options})


@feature("chat")
def chat() -> None:
    reply = create(
        user("Hi"), system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]
    )
    assert reply.content[0].text == HELLO
    assert (reply.stop_reason, reply.usage.output_tokens > 0) == ("end_turn", True)


@feature("streaming")
def streaming() -> None:
    with stream(user("Hi")) as events:
        assert "".join(events.text_stream) == HELLO
        final = events.get_final_message()
    assert (final.content[0].text, final.stop_reason) == (HELLO, "end_turn")
    assert final.usage.output_tokens > 0


@feature("deferred code")
def deferred() -> None:
    reply = create(user("6 * 7?"), tools=[CODE])
    kinds = [block.type for block in reply.content]
    assert kinds == ["text", "server_tool_use", "code_execution_tool_result", "text"]
    assert reply.content[2].content.stdout == "42"
    with stream(user("6 * 7?"), tools=[CODE]) as events:
        final = events.get_final_message()
    assert [block.type for block in final.content] == kinds
    assert final.content[1].input == reply.content[1].input == {"code": "x = 6 * 7\nprint(x)"}
    again = [*user("6 * 7?"), final.to_param(), *user("Hi")]
    assert create(again, tools=[CODE]).content[0].text == HELLO


@feature("own functions")
def functions() -> None:
    for streamed in (False, True):
        messages = user("weather?")
        if streamed:
            with stream(messages, tools=[WEATHER]) as events:
                reply = events.get_final_message()
        else:
            reply = create(messages, tools=[WEATHER])
        [use] = reply.content
        assert (reply.stop_reason, use.name, use.input) == ("tool_use", "get_weather", {"city": "Paris"})
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        messages = [*messages, reply.to_param(), {"role": "user", "content": [result]}]
        second = create(messages, tools=[WEATHER])
        assert "sunny" in second.content[0].text
        messages += [second.to_param(), *user("Hi")]
        assert create(messages, tools=[WEATHER]).content[0].text == HELLO
    for choice in ({"type": "tool", "name": "get_weather"}, {"type": "any"}):
        assert create(user("weather?"), tools=[WEATHER], tool_choice=choice).stop_reason == "tool_use"

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Weather of a city."""
        return f"sunny in {city}"

    for streamed in (False, True):
        runner = client.beta.messages.tool_runner(
            model=MODEL, max_tokens=900, messages=user("weather?"), tools=[get_weather], stream=streamed
        )
        assert "sunny" in runner.until_done().content[0].text


@feature("functions and code")
def functions_and_code() -> None:
    """Code runs, then the function, then code again."""
    tools = [WEATHER, CODE]
    ran = ["text", "server_tool_use", "code_execution_tool_result", "text"]
    for streamed in (False, True):
        messages = user("6 * 7 and the weather?")
        first = _reply(messages, streamed, tools)
        assert [block.type for block in first.content] == [*ran, "tool_use"]
        assert first.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "sunny"}
        messages = [*messages, first.to_param(), {"role": "user", "content": [result]}]
        second = _reply(messages, streamed, tools)
        assert [block.type for block in second.content] == ran
        assert "sunny in Paris" in second.content[-1].text


@feature("functions from code")
def functions_from_code() -> None:
    """Code calls the function for both cities, and waits for the results."""
    version = "code_execution_20250825"
    tools = [{**WEATHER, "allowed_callers": [version]}, {"type": version, "name": "code_execution"}]
    for streamed in (False, True):
        messages, kinds = user("How is the weather in both cities?"), []
        while True:
            reply = _reply(messages, streamed, tools)
            kinds += [block.type for block in reply.content]
            messages.append(reply.to_param())
            if reply.stop_reason == "end_turn":
                break
            run, *uses = reply.content[1:]
            assert [use.input["city"] for use in uses] == ["Paris", "Rome"]
            assert {(use.caller.type, use.caller.tool_id) for use in uses} == {(version, run.id)}
            results = [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"} for use in uses]
            messages.append({"role": "user", "content": results})
        waited = ["text", "server_tool_use", "tool_use", "tool_use"]
        assert kinds == [*waited, "code_execution_tool_result", "text"]
        assert reply.content[0].content.stdout.strip() == "sunny\nsunny"
        assert reply.content[-1].text == "It is sunny in both."
        assert create([*messages, *user("Hi")], tools=tools).content[0].text == HELLO


def _reply(messages, streamed, tools):
    if not streamed:
        return create(messages, tools=tools)
    with stream(messages, tools=tools) as events:
        return events.get_final_message()


@feature("Messages API")
def messages() -> None:
    count = client.messages.count_tokens(model=MODEL, messages=user("Hi"))
    assert count.input_tokens == create(user("Hi")).usage.input_tokens
    stopped = create(user("Hi"), stop_sequences=[" there"])
    assert (stopped.content[0].text, stopped.stop_sequence) == ("Hello", " there")
    started = [*user("Hi"), {"role": "assistant", "content": "Well, "}]
    assert create(started).content[0].text == HELLO


class Place(BaseModel):
    city: str
    degrees: int


@feature("JSON by schema")
def structured() -> None:
    form = {"format": {"type": "json_schema", "schema": PLACE_SCHEMA}}
    assert '"degrees": 21' in create(user("JSON please"), output_config=form).content[0].text
    parsed = client.messages.parse(
        model=MODEL, max_tokens=900, messages=user("JSON please"), output_format=Place
    )
    assert parsed.parsed_output == Place(city="Paris", degrees=21)


@feature("thinking")
def thinking() -> None:
    options = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}
    with stream(user("Think"), **options) as events:
        final = events.get_final_message()
    thought, text = final.content
    assert (thought.thinking, text.text, thought.signature != "") == ("Let me see.", "Hello.", True)
    again = [*user("Think"), final.to_param(), *user("Hi")]
    assert create(again, **options).content[0].text == HELLO


@feature("errors")
def errors() -> None:
    picture = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    try:
        create([{"role": "user", "content": [picture]}])
    except anthropic.BadRequestError as error:
        found = (error.body["error"]["param"], error.type, error.request_id is not None)
        if found != ("messages[0].content[0]", "invalid_request_error", True):
            raise
    else:
        raise AssertionError("accepted")
    try:
        anthropic.Anthropic(base_url=client.base_url, api_key="wrong", max_retries=0).messages.create(
            model=MODEL, max_tokens=9, messages=user("Hi")
        )
    except anthropic.AuthenticationError:
        return
    raise AssertionError("let in")


run()
