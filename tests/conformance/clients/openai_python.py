"""The official Python SDK."""

from __future__ import annotations

import json

import openai
from harness import BASE_URL, HELLO, KEY, MODEL, PLACE_SCHEMA, WEATHER, feature, run, user

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
create = client.chat.completions.create


@feature("chat")
def chat() -> None:
    assert create(model=MODEL, messages=user("Hi")).choices[0].message.content == HELLO


@feature("streaming")
def streaming() -> None:
    chunks = list(
        create(model=MODEL, messages=user("Hi"), stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == HELLO
    assert chunks[-1].usage.completion_tokens > 0


@feature("deferred code")
def deferred() -> None:
    message = create(model=MODEL, messages=user("6 * 7?")).choices[0].message
    assert message.content.endswith("\\boxed{42}.")
    assert message.tool_calls is None
    assert message.executed_tools[0]["status"] == "ok"
    with client.chat.completions.stream(model=MODEL, messages=user("6 * 7?")) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == message.content
    assert final.choices[0].message.executed_tools[-1]["output"] == "42"


@feature("own functions")
def functions() -> None:
    for streamed in (False, True):
        messages = user("weather?")
        if streamed:
            with client.chat.completions.stream(model=MODEL, messages=messages, tools=[WEATHER]) as stream:
                choice = stream.get_final_completion().choices[0]
        else:
            choice = create(model=MODEL, messages=messages, tools=[WEATHER]).choices[0]
        assert choice.finish_reason == "tool_calls"
        [call] = choice.message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        answer = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        second = create(model=MODEL, messages=[*messages, choice.message, answer], tools=[WEATHER])
        assert "sunny" in second.choices[0].message.content
    named = {"type": "function", "function": {"name": "get_weather"}}
    forced = create(model=MODEL, messages=user("weather?"), tools=[WEATHER], tool_choice=named)
    assert forced.choices[0].message.tool_calls


CODE = {"type": "code_interpreter", "container": {"type": "auto"}}
BOTH = "What is 6 * 7 and the weather?"
DONE = "It is sunny in Paris, and the answer is \\boxed{42}."


def both_in_chat(streamed: bool) -> None:
    tools, messages = [WEATHER, CODE], user(BOTH)
    ran = []
    while True:
        if streamed:
            with client.chat.completions.stream(model=MODEL, messages=messages, tools=tools) as stream:
                choice = stream.get_final_completion().choices[0]
        else:
            choice = create(model=MODEL, messages=messages, tools=tools).choices[0]
        ran += [tool["output"] for tool in choice.message.executed_tools if tool["status"] == "ok"]
        messages = [*messages, choice.message]
        if choice.finish_reason == "stop":
            break
        [call] = choice.message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny in Paris"})
    assert choice.message.content.endswith(DONE)
    assert ran == ["42", "42"]


def both_in_responses(streamed: bool, stored: bool) -> None:
    tools = [{"type": "function", "strict": True, **WEATHER["function"]}, CODE]
    items, previous, kinds = user(BOTH), None, []
    while True:
        options = {"model": MODEL, "tools": tools, "input": items, "previous_response_id": previous}
        if streamed:
            with client.responses.stream(**options) as stream:
                reply = stream.get_final_response()
        else:
            reply = client.responses.create(**options)
        kinds += [item.type for item in reply.output]
        calls = [item for item in reply.output if item.type == "function_call"]
        if not calls:
            break
        answers = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny in Paris"}
            for call in calls
        ]
        previous = reply.id if stored else None
        items = answers if stored else [*items, *reply.output, *answers]
    assert reply.output_text.endswith(DONE)
    code = ["message", "code_interpreter_call", "message"]
    assert kinds == [*code, "function_call", *code]


@feature("functions and code")
def functions_and_code() -> None:
    for streamed in (False, True):
        both_in_chat(streamed)
        for stored in (False, True):
            both_in_responses(streamed, stored)


CITIES = "How is the weather in both cities?"


def from_code_in_chat(streamed: bool) -> None:
    tools, messages = [{**WEATHER, "allowed_callers": ["programmatic"]}], user(CITIES)
    while True:
        if streamed:
            with client.chat.completions.stream(model=MODEL, messages=messages, tools=tools) as stream:
                choice = stream.get_final_completion().choices[0]
        else:
            choice = create(model=MODEL, messages=messages, tools=tools).choices[0]
        messages.append(choice.message)
        if choice.finish_reason == "stop":
            break
        assert len(choice.message.tool_calls) == 2
        for call in choice.message.tool_calls:
            city = json.loads(call.function.arguments)["city"]
            messages.append({"role": "tool", "tool_call_id": call.id, "content": f"sunny in {city}"})
    assert choice.message.content.endswith("It is sunny in both.")
    assert choice.message.executed_tools[-1]["output"] == "sunny in Paris\nsunny in Rome"
    messages += user("Hi")
    assert create(model=MODEL, messages=messages, tools=tools).choices[0].message.content == HELLO


def from_code_in_responses(streamed: bool, stored: bool, programs: bool) -> None:
    tools = [{"type": "function", "allowed_callers": ["programmatic"], **WEATHER["function"]}]
    tools += [{"type": "programmatic_tool_calling"}] if programs else []
    items, previous, kinds = user(CITIES), None, []
    while True:
        options = {"model": MODEL, "tools": tools, "input": items, "previous_response_id": previous}
        if streamed:
            with client.responses.stream(**options) as stream:
                reply = stream.get_final_response()
        else:
            reply = client.responses.create(**options)
        kinds += [item.type for item in reply.output]
        calls = [item for item in reply.output if item.type == "function_call"]
        answers = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls
        ]
        previous = reply.id if stored else None
        items = answers if stored else [*items, *reply.output, *answers]
        if not calls:
            break
        assert {call.caller.type for call in calls} == {"program"}
    assert reply.output_text == "It is sunny in both."
    first, last = ("program", "program_output") if programs else ("code_interpreter_call",) * 2
    assert kinds == ["message", first, "function_call", "function_call", last, "message"]
    options["input"] = [*items, *user("Hi")]
    options["previous_response_id"] = previous
    assert client.responses.create(**options).output_text == HELLO


@feature("functions from code")
def functions_from_code() -> None:
    for streamed in (False, True):
        from_code_in_chat(streamed)
        for stored in (False, True):
            for programs in (False, True):
                from_code_in_responses(streamed, stored, programs)


@feature("JSON by schema")
def structured() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE_SCHEMA, "strict": True}}
    reply = create(model=MODEL, messages=user("JSON please"), response_format=form)
    assert json.loads(reply.choices[0].message.content)["degrees"] == 21
    extra = {"deferral": {"enabled": True}}
    message = (
        create(model=MODEL, messages=user("6 * 7?"), response_format=form, extra_body=extra)
        .choices[0]
        .message
    )
    assert json.loads(message.content)["degrees"] == 21
    assert message.executed_tools[0]["status"] == "ok"
    code = [{"type": "code_interpreter", "container": {"type": "auto"}}]
    text = {"format": {"type": "json_schema", "name": "place", "schema": PLACE_SCHEMA, "strict": True}}
    reply = client.responses.create(model=MODEL, input="6 * 7?", tools=code, text=text)
    assert json.loads(reply.output_text)["degrees"] == 21
    assert "code_interpreter_call" in [item.type for item in reply.output]


@feature("thinking")
def thinking() -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": True}}
    message = create(model=MODEL, messages=user("Think"), extra_body=extra).choices[0].message
    assert (message.reasoning, message.content) == ("Let me see.", "Hello.")


@feature("log-probabilities")
def logprobs() -> None:
    choice = create(model=MODEL, messages=user("Hi"), logprobs=True, top_logprobs=1).choices[0]
    assert "".join(item.token for item in choice.logprobs.content) == HELLO


@feature("text completions")
def completions() -> None:
    [choice] = client.completions.create(model=MODEL, prompt="Hi", max_tokens=100).choices
    assert choice.text == HELLO
    [choice] = client.completions.create(
        model=MODEL, prompt="Hi", max_tokens=0, echo=True, logprobs=1
    ).choices
    assert (choice.text, choice.logprobs.tokens) == ("Hi", ["H", "i"])


@feature("errors")
def errors() -> None:
    assert create(model=MODEL, messages=user("Hi"), store=True).choices
    try:
        create(model=MODEL, messages=user("Hi"), modalities=["text", "audio"])
    except openai.BadRequestError as error:
        if (error.param, error.code) != ("modalities", "unsupported_parameter"):
            raise
    else:
        raise AssertionError("accepted")
    try:
        openai.OpenAI(base_url=BASE_URL, api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError:
        return
    raise AssertionError("let in")


@feature("Responses API")
def responses() -> None:
    tools = [{"type": "code_interpreter", "container": {"type": "auto"}}]
    reply = client.responses.create(
        model=MODEL, input="6 * 7?", tools=tools, include=["code_interpreter_call.outputs"]
    )
    assert "\\boxed{42}" in reply.output_text
    call = next(item for item in reply.output if item.type == "code_interpreter_call")
    assert call.outputs[0].logs.strip() == "42"
    with client.responses.stream(model=MODEL, input="6 * 7?", tools=tools) as stream:
        kinds = {event.type for event in stream}
    assert {"response.code_interpreter_call.completed", "response.completed"} <= kinds


run()
