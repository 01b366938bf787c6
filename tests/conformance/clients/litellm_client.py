"""LiteLLM, as a library."""

from __future__ import annotations

import json

import litellm
from harness import BASE_URL, HELLO, KEY, MODEL, PLACE_SCHEMA, WEATHER, feature, run, user

litellm.telemetry = False


def ask(text: str, **options: object) -> object:
    return litellm.completion(
        model=f"openai/{MODEL}", api_base=BASE_URL, api_key=KEY, messages=user(text), num_retries=0, **options
    )


def converse(**options: object) -> str:
    """Send back every reply as LiteLLM returned it."""
    messages: list[object] = []
    for question in ("weather?", "Think", "Hello"):
        messages.append({"role": "user", "content": question})
        while True:
            reply = litellm.completion(
                model=f"openai/{MODEL}", api_base=BASE_URL, api_key=KEY, messages=messages, tools=[WEATHER],
                num_retries=0, **options,
            ).choices[0].message  # fmt: skip
            messages.append(reply)
            if not reply.tool_calls:
                break
            for call in reply.tool_calls:
                answer = {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": "sunny"}
                messages.append(answer)
    return reply.content


@feature("chat")
def chat() -> None:
    assert ask("Hi").choices[0].message.content == HELLO


@feature("streaming")
def streaming() -> None:
    chunks = list(ask("Hi", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == HELLO


@feature("deferred code")
def deferred() -> None:
    message = ask("6 * 7?").choices[0].message
    assert message.content.endswith("\\boxed{42}.")
    assert not message.tool_calls


@feature("own functions")
def functions() -> None:
    [call] = ask("weather?", tools=[WEATHER]).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    for effort in (None, "low"):
        assert converse(reasoning_effort=effort, allowed_openai_params=["reasoning_effort"]) == HELLO
    whole = litellm.stream_chunk_builder(list(ask("weather?", tools=[WEATHER], stream=True)))
    [call] = whole.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}


@feature("JSON by schema")
def structured() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE_SCHEMA, "strict": True}}
    reply = ask("JSON please", response_format=form)
    assert json.loads(reply.choices[0].message.content)["degrees"] == 21


@feature("thinking")
def thinking() -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": True}}
    message = ask("Think", extra_body=extra).choices[0].message
    assert (message.reasoning_content, message.content) == ("Let me see.", "Hello.")


@feature("log-probabilities")
def logprobs() -> None:
    choice = ask("Hi", logprobs=True).choices[0]
    assert "".join(item["token"] for item in choice.logprobs["content"]) == HELLO


@feature("Messages API")
def messages() -> None:
    base = BASE_URL.removesuffix("/v1")

    def claude(messages: list[object], **options: object) -> object:
        return litellm.completion(
            model=f"anthropic/{MODEL}",
            api_base=base,
            api_key=KEY,
            messages=messages,
            num_retries=0,
            **options,
        )

    assert claude(user("Hi")).choices[0].message.content == HELLO
    whole = litellm.stream_chunk_builder(list(claude(user("weather?"), tools=[WEATHER], stream=True)))
    for message in (whole.choices[0].message, claude(user("weather?"), tools=[WEATHER]).choices[0].message):
        [call] = message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        turns = [*user("weather?"), message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        assert "sunny" in claude(turns, tools=[WEATHER]).choices[0].message.content


run()
