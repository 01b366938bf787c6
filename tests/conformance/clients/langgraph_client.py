"""LangGraph's agent: its second turns send the model's own messages and the tools' answers back."""

from __future__ import annotations

from harness import BASE_URL, HELLO, KEY, MODEL, feature, run
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent


@tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"sunny in {city}"


def converse(**options: object) -> str:
    model = ChatOpenAI(base_url=BASE_URL, api_key=KEY, model=MODEL, max_retries=0, **options)
    agent = create_react_agent(model, [get_weather])
    messages: list[object] = []
    for question in ("What is the weather?", "Think", "Hello"):
        messages = agent.invoke({"messages": [*messages, ("user", question)]})["messages"]
    return messages[-1].text


@feature("own functions")
def functions() -> None:
    assert converse() == HELLO


@feature("Responses API")
def responses() -> None:
    assert converse(use_responses_api=True) == HELLO
    stateless = {"store": False, "include": ["reasoning.encrypted_content"], "output_version": "responses/v1"}
    assert (
        converse(use_responses_api=True, reasoning={"effort": "low", "summary": "auto"}, **stateless) == HELLO
    )


run()
