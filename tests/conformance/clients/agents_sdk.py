"""OpenAI's Agents SDK, over both APIs."""

from __future__ import annotations

import asyncio

from agents import (
    Agent,
    CodeInterpreterTool,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    ProgrammaticToolCallingTool,
    Runner,
    RunResult,
    RunResultStreaming,
    function_tool,
    set_tracing_disabled,
)
from harness import BASE_URL, HELLO, KEY, MODEL, feature, run
from openai import AsyncOpenAI

set_tracing_disabled(True)


def chat_model() -> OpenAIChatCompletionsModel:
    return OpenAIChatCompletionsModel(MODEL, AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0))


def responses_model() -> OpenAIResponsesModel:
    return OpenAIResponsesModel(MODEL, AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0))


@function_tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"sunny in {city}"


@feature("chat")
def chat() -> None:
    agent = Agent(name="a", model=chat_model())
    assert Runner.run_sync(agent, "Hi").final_output == HELLO


@feature("streaming")
def streaming() -> None:
    async def main() -> None:
        result = Runner.run_streamed(Agent(name="a", model=chat_model()), "Hi")
        events = [event async for event in result.stream_events()]
        assert result.final_output == HELLO
        assert len(events) > 5

    asyncio.run(main())


@feature("deferred code")
def deferred() -> None:
    agent = Agent(name="a", model=chat_model(), model_settings=ModelSettings(temperature=0.0))
    assert Runner.run_sync(agent, "6 * 7?").final_output.endswith("\\boxed{42}.")


@feature("own functions")
def functions() -> None:
    agent = Agent(name="a", model=chat_model(), tools=[get_weather])
    assert "sunny" in Runner.run_sync(agent, "weather?").final_output


BOTH = "What is 6 * 7 and the weather?"


def check_both(result: RunResult | RunResultStreaming) -> None:
    assert result.final_output.endswith("It is sunny in Paris, and the answer is \\boxed{42}.")
    outputs = [item.output for item in result.new_items if item.type == "tool_call_output_item"]
    assert outputs == ["sunny in Paris"]


@feature("functions and code")
def functions_and_code() -> None:
    async def main() -> None:
        tool = CodeInterpreterTool({"type": "code_interpreter", "container": {"type": "auto"}})
        agent = Agent(name="a", model=responses_model(), tools=[get_weather, tool])
        result = await Runner.run(agent, BOTH)
        check_both(result)
        kinds = [getattr(item.raw_item, "type", None) for item in result.new_items]
        assert kinds.count("code_interpreter_call") == 2
        # The conversation continues with all items sent back.
        question = {"role": "user", "content": "Hi"}
        assert (await Runner.run(agent, [*result.to_input_list(), question])).final_output == HELLO
        streamed = Runner.run_streamed(agent, BOTH)
        events = [event async for event in streamed.stream_events()]
        check_both(streamed)
        names = [event.name for event in events if event.type == "run_item_stream_event"]
        assert names.index("tool_called") < names.index("tool_output")
        # The SDK's chat model sends functions only; code is turned on in the body.
        settings = ModelSettings(extra_body={"deferral": {"enabled": True}})
        chat = Agent(name="a", model=chat_model(), tools=[get_weather], model_settings=settings)
        check_both(await Runner.run(chat, BOTH))

    asyncio.run(main())


@feature("functions from code")
def functions_from_code() -> None:
    @function_tool(name_override="get_weather", allowed_callers=["programmatic"])
    def weather_for_code(city: str) -> str:
        """Weather of a city."""
        return f"sunny in {city}"

    async def main() -> None:
        tools = [weather_for_code, ProgrammaticToolCallingTool()]
        agent = Agent(name="a", model=responses_model(), tools=tools)
        question = "How is the weather in both cities?"
        result = await Runner.run(agent, question)
        assert result.final_output == "It is sunny in both."
        outputs = [item.output for item in result.new_items if item.type == "tool_call_output_item"]
        assert [output for output in outputs if str(output).startswith("sunny in")][:2] == [
            "sunny in Paris",
            "sunny in Rome",
        ]
        hello = {"role": "user", "content": "Hi"}
        assert (await Runner.run(agent, [*result.to_input_list(), hello])).final_output == HELLO
        by_id = await Runner.run(agent, question, auto_previous_response_id=True)
        assert by_id.final_output == "It is sunny in both."
        streamed = Runner.run_streamed(agent, question)
        names = [e.name async for e in streamed.stream_events() if e.type == "run_item_stream_event"]
        assert streamed.final_output == "It is sunny in both."
        assert names.count("tool_called") >= 2

    asyncio.run(main())


@feature("Responses API")
def responses() -> None:
    tool = CodeInterpreterTool({"type": "code_interpreter", "container": {"type": "auto"}})
    agent = Agent(name="a", model=responses_model(), tools=[tool])
    result = Runner.run_sync(agent, "6 * 7?")
    assert "\\boxed{42}" in result.final_output


run()
