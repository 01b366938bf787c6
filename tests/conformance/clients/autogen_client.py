"""AutoGen, whose messages have names."""

from __future__ import annotations

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient
from harness import BASE_URL, HELLO, KEY, MODEL, feature, run

ABILITIES = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "structured_output": True,
    "family": "unknown",
}


async def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"sunny in {city}"


@feature("own functions")
def functions() -> None:
    async def converse() -> None:
        client = OpenAIChatCompletionClient(
            base_url=BASE_URL, api_key=KEY, model=MODEL, model_info=ABILITIES, max_retries=0
        )
        agent = AssistantAgent("bob", model_client=client, tools=[get_weather], reflect_on_tool_use=True)
        first = await agent.run(task="What is the weather?")
        assert "sunny" in first.messages[-1].content
        second = await agent.run(task="Hello")
        assert second.messages[-1].content == HELLO
        await client.close()

    asyncio.run(converse())


run()
