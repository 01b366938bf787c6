"""LangChain's ChatOpenAI."""

from __future__ import annotations

from harness import BASE_URL, HELLO, KEY, MODEL, PLACE_SCHEMA, WEATHER, feature, run
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url=BASE_URL, api_key=KEY, model=MODEL, max_retries=0)


@feature("chat")
def chat() -> None:
    assert model.invoke("Hi").content == HELLO


@feature("streaming")
def streaming() -> None:
    whole = None
    for chunk in model.stream("Hi", stream_usage=True):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == HELLO
    assert whole.usage_metadata["output_tokens"] > 0


@feature("deferred code")
def deferred() -> None:
    reply = model.invoke("6 * 7?")
    assert reply.content.endswith("\\boxed{42}.")
    assert reply.tool_calls == []


@feature("own functions")
def functions() -> None:
    able = model.bind_tools([WEATHER])
    question = HumanMessage("weather?")
    for reply in (able.invoke([question]), _streamed(able, question)):
        [call] = reply.tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
        answer = ToolMessage("sunny", tool_call_id=call["id"])
        assert "sunny" in able.invoke([question, reply, answer]).content


def _streamed(able: object, question: HumanMessage) -> object:
    whole = None
    for chunk in able.stream([question]):
        whole = chunk if whole is None else whole + chunk
    return whole


@feature("functions and code")
def functions_and_code() -> None:
    code = {"type": "code_interpreter", "container": {"type": "auto"}}
    able = ChatOpenAI(base_url=BASE_URL, api_key=KEY, model=MODEL, max_retries=0, use_responses_api=True)
    for bound in (able.bind_tools([WEATHER, code]), model.bind(tools=[WEATHER, code])):
        messages = [HumanMessage("What is 6 * 7 and the weather?")]
        while (reply := bound.invoke(messages)).tool_calls:
            [call] = reply.tool_calls
            messages += [reply, ToolMessage("sunny in Paris", tool_call_id=call["id"])]
        assert reply.text.endswith("It is sunny in Paris, and the answer is \\boxed{42}.")
        assert len(messages) == 3


@feature("JSON by schema")
def structured() -> None:
    able = model.with_structured_output({"title": "place", **PLACE_SCHEMA}, method="json_schema", strict=True)
    assert able.invoke("JSON please") == {"city": "Paris", "degrees": 21}


@feature("log-probabilities")
def logprobs() -> None:
    reply = model.bind(logprobs=True).invoke("Hi")
    assert "".join(item["token"] for item in reply.response_metadata["logprobs"]["content"]) == HELLO


@feature("Responses API")
def responses() -> None:
    able = ChatOpenAI(base_url=BASE_URL, api_key=KEY, model=MODEL, max_retries=0, use_responses_api=True)
    tool = {"type": "code_interpreter", "container": {"type": "auto"}}
    reply = able.bind_tools([tool]).invoke("6 * 7?")
    assert "\\boxed{42}" in reply.text
    assert any(block["type"] == "code_interpreter_call" for block in reply.content)


@feature("Messages API")
def messages() -> None:
    claude = ChatAnthropic(base_url=BASE_URL.removesuffix("/v1"), api_key=KEY, model=MODEL, max_retries=0)
    assert claude.invoke("Hi").content == HELLO
    able = claude.bind_tools([WEATHER])
    question = HumanMessage("weather?")
    for reply in (able.invoke([question]), _streamed(able, question)):
        [call] = reply.tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
        turns = [question, reply, ToolMessage("sunny", tool_call_id=call["id"])]
        second = able.invoke(turns)
        assert "sunny" in second.content
        assert able.invoke([*turns, second, HumanMessage("Hi")]).content == HELLO


run()
