"""Pydantic AI."""

from __future__ import annotations

from harness import BASE_URL, HELLO, KEY, MODEL, feature, run
from pydantic import BaseModel
from pydantic_ai import Agent, CodeExecutionTool, NativeOutput
from pydantic_ai.capabilities import NativeTool
from pydantic_ai.models.anthropic import AnthropicModel, AnthropicModelSettings
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

PROVIDER = OpenAIProvider(base_url=BASE_URL, api_key=KEY)


class Place(BaseModel):
    city: str
    degrees: int


def converse(agent: Agent) -> str:
    @agent.tool_plain
    def get_weather(city: str) -> str:
        return f"sunny in {city}"

    first = agent.run_sync("What is the weather?")
    assert "sunny" in first.output
    second = agent.run_sync("Think", message_history=first.all_messages())
    return agent.run_sync("Hello", message_history=second.all_messages()).output


@feature("chat")
def chat() -> None:
    assert Agent(OpenAIChatModel(MODEL, provider=PROVIDER)).run_sync("Hi").output == HELLO


@feature("own functions")
def functions() -> None:
    assert converse(Agent(OpenAIChatModel(MODEL, provider=PROVIDER))) == HELLO


@feature("functions and code")
def functions_and_code() -> None:
    code = NativeTool(CodeExecutionTool())
    agent = Agent(OpenAIResponsesModel(MODEL, provider=PROVIDER), capabilities=[code])

    @agent.tool_plain
    def get_weather(city: str) -> str:
        return f"sunny in {city}"

    first = agent.run_sync("What is 6 * 7 and the weather?")
    assert first.output.endswith("It is sunny in Paris, and the answer is \\boxed{42}.")
    assert agent.run_sync("Hello", message_history=first.all_messages()).output == HELLO


@feature("JSON by schema")
def structured() -> None:
    agent = Agent(OpenAIChatModel(MODEL, provider=PROVIDER), output_type=NativeOutput(Place))
    assert agent.run_sync("JSON please").output == Place(city="Paris", degrees=21)


@feature("Responses API")
def responses() -> None:
    settings = OpenAIResponsesModelSettings(
        openai_reasoning_effort="low", openai_reasoning_summary="detailed", openai_text_verbosity="low"
    )
    agent = Agent(OpenAIResponsesModel(MODEL, provider=PROVIDER), model_settings=settings)
    assert converse(agent) == HELLO


@feature("Messages API")
def messages() -> None:
    model = AnthropicModel(
        MODEL, provider=AnthropicProvider(base_url=BASE_URL.removesuffix("/v1"), api_key=KEY)
    )
    assert converse(Agent(model)) == HELLO
    settings = AnthropicModelSettings(anthropic_thinking={"type": "enabled", "budget_tokens": 1024})
    assert converse(Agent(model, model_settings=settings)) == HELLO


run()
