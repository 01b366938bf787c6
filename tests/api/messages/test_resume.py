"""Code that calls tools of the client in the Messages API, through Anthropic's client."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from service.api.chat.suspension import Suspensions
from tests.support.fake_files import FakeFileSandbox
from tests.support.messages_api import CODE_TOOL, QUESTION, WEATHER, ask, checked, kinds, serving, streamed
from tests.support.scripted import EOS, ResumingEngine, ScriptedEngine
from tests.support.serving import Served
from tests.support.tool_sandbox import ToolSandbox

TURN = "Let me see.\n```python\n{}\n```<tool_call>"
ONE = TURN.format('call weather {"city": "Ulm"}')
TWO = TURN.format('all weather [{"city": "Ulm"}, {"city": "Bonn"}]')
AFTER = TURN.format('call weather {"city": "Ulm"}\ncall weather {"city": "Bonn"}')
ANSWER = f"So \\boxed{{rain}}.{EOS}"
VERSION = "code_execution_20250825"
CODE_WEATHER: Any = {**WEATHER, "allowed_callers": [VERSION]}
TOOLS: Any = [CODE_WEATHER, {"type": VERSION, "name": "code_execution"}]
KEYS = ",".join("sha256:" + hashlib.sha256(name).hexdigest() for name in (b"ann", b"bob"))


class Api:
    """A server, its client and its engine."""

    def __init__(self, served: Served, client: anthropic.AsyncAnthropic, engine: ScriptedEngine) -> None:
        self.served, self.client, self.engine = served, client, engine
        self.kept: Suspensions = served.app.state.suspensions

    async def ask(self, messages: Any = QUESTION, *, streams: bool = False, **options: Any) -> Any:
        """Return the reply, whole or from its stream."""
        fields = {"tools": TOOLS, **options}
        if streams:
            return anthropic.types.Message.model_validate(
                checked(await streamed(self.client, messages, **fields))
            )
        return await ask(self.client, messages, **fields)

    def prompt(self) -> str:
        return self.engine.tokenizer.decode(self.engine.calls[-1][0])

    def sent(self, text: str) -> bool:
        """Return whether the last prompt contains the token ids of ``text``, control tokens included."""
        ids = self.engine.calls[-1][0]
        wanted = self.engine.tokenizer.encode(text, allow_special=True)
        return any(ids[at : at + len(wanted)] == wanted for at in range(len(ids)))


@asynccontextmanager
async def api(*turns: str, **options: Any) -> AsyncGenerator[Api, None]:
    engine = options.pop("engine", ScriptedEngine)(*turns)
    box = options.pop("box", None) or ToolSandbox()
    async with serving(engine, box, **{"max_suspended": 16, **options}) as (served, client):
        yield Api(served, client, engine)


def calls(message: Any) -> list[Any]:
    return [block for block in message.content if block.type == "tool_use"]


def results(message: Any, text: str = "rain in {city}", **more: Any) -> Any:
    blocks = [
        {"type": "tool_result", "tool_use_id": use.id, "content": text.format(**use.input), **more}
        for use in calls(message)
    ]
    return {"role": "user", "content": blocks}


def after(messages: Any, message: Any, text: str = "rain in {city}") -> Any:
    return [*messages, message.to_param(), results(message, text)]


def types(message: Any) -> list[str]:
    return [block.type for block in message.content]


@pytest.mark.parametrize("streams", [False, True])
async def test_message_ends_with_the_calls_and_the_next_one_continues(streams: bool) -> None:
    async with api(TWO, ANSWER, f"Bye.{EOS}") as server:
        first = await server.ask(streams=streams)
        assert types(first) == ["text", "server_tool_use", "tool_use", "tool_use"]
        assert (first.stop_reason, first.stop_sequence) == ("tool_use", None)
        _, run, use, other = first.content
        assert (use.name, use.input, other.input) == ("weather", {"city": "Ulm"}, {"city": "Bonn"})
        assert use.caller.to_dict() == {"type": VERSION, "tool_id": run.id}
        assert run.input == {"code": 'all weather [{"city": "Ulm"}, {"city": "Bonn"}]'}
        assert len(server.kept) == 1
        turns = after(QUESTION, first)
        second = await server.ask(turns, streams=streams)
        assert types(second) == ["code_execution_tool_result", "text"]
        assert second.content[0].tool_use_id == run.id
        assert second.content[0].content.stdout == "rain in Ulm\nrain in Bonn"
        assert (second.stop_reason, second.to_dict()["final_answer"]) == ("end_turn", "rain")
        assert second.id != first.id
        assert len(server.kept) == 0
        total = first.usage.input_tokens + first.usage.output_tokens
        assert second.usage.input_tokens == total
        # The model has written one turn, and reads it by the same tokens.
        await server.ask([*turns, second.to_param(), *QUESTION], streams=streams)
        assert server.sent(
            f"{TWO}\nCode execution result: rain in Ulm\nrain in Bonn\n</tool_call>\nSo \\boxed{{rain}}."
        )
        assert "call_code" not in server.prompt()
        assert server.prompt().count("rain in Ulm") == 1


async def test_code_can_wait_several_times() -> None:
    async with api(AFTER, ANSWER, f"Bye.{EOS}") as server:
        first = await server.ask()
        turns = after(QUESTION, first)
        second = await server.ask(turns)
        assert types(second) == ["tool_use"]
        assert second.content[0].caller.tool_id == first.content[1].id
        turns = after(turns, second)
        third = await server.ask(turns)
        assert third.content[0].content.stdout == "rain in Ulm\nrain in Bonn"
        await server.ask([*turns, third.to_param(), *QUESTION])
        assert server.sent(
            f"{AFTER}\nCode execution result: rain in Ulm\nrain in Bonn\n</tool_call>\nSo \\boxed{{rain}}."
        )


async def test_stream_of_a_suspended_message() -> None:
    async with api(ONE, ANSWER) as server:
        events = await streamed(server.client, tools=TOOLS)
        assert kinds(events, "ping", "delta text_delta", "delta input_json_delta") == [
            *("message_start", "start text", "stop", "start server_tool_use", "stop"),
            *("start tool_use", "stop", "message_delta", "message_stop"),
        ]
        [start] = [event for event in events if event.get("content_block", {}).get("type") == "tool_use"]
        assert start["content_block"]["input"] == {}
        assert start["content_block"]["caller"]["type"] == VERSION


async def test_accumulator_of_the_sdk_keeps_the_caller() -> None:
    async with api(ONE, ANSWER) as server:
        fields: Any = {"model": "scripted", "max_tokens": 500, "tools": TOOLS}
        async with server.client.messages.stream(messages=QUESTION, **fields) as stream:
            first = await stream.get_final_message()
        assert calls(first)[0].caller.type == VERSION
        async with server.client.messages.stream(messages=after(QUESTION, first), **fields) as stream:
            assert await stream.get_final_text() == "So \\boxed{rain}."


@pytest.mark.parametrize("tool", ["weather_tool", "code"])
async def test_container_is_reported_while_code_waits_and_continues(tool: str) -> None:
    code = "x = 5\ncall('weather', city='Ulm')"
    async with api(TURN.format(code), f"Done.{EOS}", box=FakeFileSandbox()) as server:
        first = await server.ask()
        record = server.served.app.state.containers._live[first.container.id].record
        # The time until the code ends is shorter than the time until the container does.
        assert record.idle_minutes * 60 > server.kept.limits.seconds
        left = first.container.expires_at.timestamp() - first.container.expires_at.now().timestamp()
        assert left <= server.kept.limits.seconds
        turns = after(QUESTION, first)
        with pytest.raises(anthropic.BadRequestError, match="another container"):
            await server.ask(turns, container="cntr_other")
        given = {"container": first.container.id} if tool == "code" else {}
        second = await server.ask(turns, **given)
        assert second.content[0].content.stdout == "rain in Ulm"
        assert second.container.id == first.container.id
        assert second.container.expires_at > first.container.expires_at
        server.engine._turns[:] = [TURN.format("print(x)"), f"Done.{EOS}"]
        third = await server.ask(container=second.container.id)
        assert third.content[2].content.stdout == "5"


async def test_failed_result_is_an_exception_in_the_code() -> None:
    async with api(ONE, ANSWER) as server:
        first = await server.ask()
        turns = [*QUESTION, first.to_param(), results(first, "no such city", is_error=True)]
        second = await server.ask(turns)
        assert second.content[0].content.stderr == "tools.ToolError: no such city"


async def test_result_of_text_blocks_and_of_nothing() -> None:
    async with api(TWO, ANSWER) as server:
        first = await server.ask()
        answer = results(first)
        answer["content"][0]["content"] = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        del answer["content"][1]["content"]
        second = await server.ask([*QUESTION, first.to_param(), answer])
        assert second.content[0].content.stdout == "ab"


async def test_tools_of_the_model_and_of_code_are_kept_apart() -> None:
    now = {"name": "now", "input_schema": {"type": "object"}}
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    async with api(ONE, f"It rains. {call}{EOS}", ANSWER, engine=ResumingEngine) as server:
        tools = [*TOOLS, now]
        first = await server.ask(tools=tools)
        turns = after(QUESTION, first)
        second = await server.ask(turns, tools=tools)
        assert types(second) == ["code_execution_tool_result", "text", "tool_use"]
        assert (second.content[2].name, second.content[2].caller) == ("now", None)
        turns = after(turns, second, "noon")
        third = await server.ask(turns, tools=tools)
        assert third.stop_reason == "end_turn"
        assert "tool: noon\n" in server.prompt()
        assert "def weather(city: str) -> str:" in server.prompt()
        assert '"name": "weather"' not in server.prompt()
        for choice in ({"type": "tool", "name": "weather"}, {"type": "any"}):
            with pytest.raises(anthropic.BadRequestError):
                await server.ask(tools=TOOLS, tool_choice=choice)


@pytest.mark.parametrize(
    ("callers", "caller"),
    [
        (["direct", VERSION], VERSION),
        (["code_execution_20260120"], "code_execution_20260120"),
        (["code_execution_20260521"], "code_execution_20260120"),
    ],
)
async def test_versions_of_the_caller(callers: list[str], caller: str) -> None:
    async with api(ONE, ANSWER) as server:
        tools = [{**WEATHER, "allowed_callers": callers}, *CODE_TOOL]
        first = await server.ask(tools=tools)
        assert calls(first)[0].caller.type == caller
        assert ('"name": "weather"' in server.prompt()) == ("direct" in callers)
        counted = await server.client.messages.count_tokens(model="scripted", messages=QUESTION, tools=tools)
        assert counted.input_tokens == first.usage.input_tokens


@pytest.mark.parametrize(
    ("tool", "others", "param"),
    [
        ({"allowed_callers": [VERSION]}, [], "tools[0].allowed_callers"),
        ({"allowed_callers": ["code"]}, CODE_TOOL, "tools[0].allowed_callers[0]"),
        ({"allowed_callers": []}, CODE_TOOL, "tools[0].allowed_callers"),
    ],
)
async def test_rejects_callers_that_can_not_call(tool: Any, others: Any, param: str) -> None:
    async with api(ONE) as server:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await server.ask(tools=[{**WEATHER, **tool}, *others])
    body: Any = caught.value.body
    assert body["error"]["param"] == param, body


async def test_without_code_execution_only_the_model_calls() -> None:
    async with api(f"Hi.{EOS}") as server:
        raw = await server.client.messages.with_raw_response.create(
            model="scripted",
            max_tokens=9,
            messages=QUESTION,
            tools=[{**WEATHER, "allowed_callers": ["direct", VERSION]}],
        )
        assert raw.headers["x-ih-grpo-ignored"] == "tools[0].allowed_callers"
        await server.ask(tool_choice={"type": "none"})
        assert "weather" not in server.prompt()


async def test_missing_and_unknown_results_are_rejected_and_can_be_corrected() -> None:
    async with api(TWO, ANSWER) as server:
        first = await server.ask()
        turns = [*QUESTION, first.to_param()]
        answer = results(first)
        with pytest.raises(anthropic.BadRequestError, match="these are missing: call_code") as error:
            await server.ask([*turns, {**answer, "content": answer["content"][:1]}])
        body: Any = error.value.body
        assert body["error"]["details"]["error_code"] == "missing_tool_outputs"
        unknown = {"type": "tool_result", "tool_use_id": "call_code_x", "content": "?"}
        with pytest.raises(anthropic.BadRequestError, match="no earlier tool_use block has the id"):
            await server.ask([*turns, {**answer, "content": [*answer["content"], unknown]}])
        for extra in ({**answer, "content": [*answer["content"], {"type": "text", "text": "Hm."}]},):
            with pytest.raises(anthropic.BadRequestError, match="blocks of type text"):
                await server.ask([*turns, extra])
        with pytest.raises(anthropic.BadRequestError, match="'model' must be 'scripted'"):
            await server.ask([*turns, answer], model="other")
        assert len(server.kept) == 1
        await server.ask([*turns, answer])
        with pytest.raises(anthropic.ConflictError, match="No code waits for the output of 'call_code"):
            await server.ask([*turns, answer])


async def test_forgotten_code_leaves_the_conversation_usable() -> None:
    async with api(ONE, f"Hi.{EOS}") as server:
        first = await server.ask()
        server.kept._clock = lambda: 1e12
        await server.kept.sweep()
        turns = after(QUESTION, first)
        with pytest.raises(anthropic.ConflictError, match="has expired"):
            await server.ask(turns)
        turns[-1]["content"].append({"type": "text", "text": "Never mind."})
        with pytest.raises(anthropic.ConflictError):
            await server.ask(turns)
        reply = await server.ask([*turns[:-1], *QUESTION])
        assert reply.content[0].text == "Hi."
        assert "rain" not in server.prompt()


async def test_results_of_another_key_reach_no_code() -> None:
    async with api(ONE, ANSWER, key="ann", api_keys=KEYS) as server:
        first = await server.ask()
        turns = after(QUESTION, first)
        bob = server.client.copy(api_key="bob")
        with pytest.raises(anthropic.ConflictError, match="No code waits"):
            await ask(bob, turns, tools=TOOLS)
        assert len(server.kept) == 1
        assert (await server.ask(turns)).stop_reason == "end_turn"


async def test_code_of_another_api_is_not_continued() -> None:
    async with api(ONE, ANSWER) as server:
        function = {"type": "function", "name": "weather", "allowed_callers": ["programmatic"]}
        tools: Any = [{**function, "parameters": WEATHER["input_schema"]}]
        response: Any = await server.served.openai.responses.create(model="scripted", input="?", tools=tools)
        call = response.output[-1]
        use = {"type": "tool_use", "id": call.call_id, "name": "weather", "input": {"city": "Ulm"}}
        result = {"type": "tool_result", "tool_use_id": call.call_id, "content": "rain"}
        turns = [*QUESTION, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
        with pytest.raises(anthropic.ConflictError, match="another API"):
            await server.ask(turns)
        output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
        second = await server.served.openai.responses.create(
            model="scripted", input=output, previous_response_id=response.id, tools=tools
        )
        assert second.output_text == "So \\boxed{rain}."


async def test_messages_can_be_continued_in_no_other_request_at_the_same_time() -> None:
    async with api(ONE, ANSWER) as server:
        turns = after(QUESTION, await server.ask())
        both = await asyncio.gather(*(server.ask(turns) for _ in range(2)), return_exceptions=True)
        assert sorted(type(one).__name__ for one in both) == ["ConflictError", "Message"]


async def test_request_without_a_place_leaves_the_code_waiting() -> None:
    options = {"max_concurrent_episodes": 1, "max_queued_episodes": 0}
    async with api(ONE, f"Hi.{EOS}", **options) as server:
        turns = after(QUESTION, await server.ask())
        async with server.served.app.state.server.admission.admit(1):
            with pytest.raises(anthropic.RateLimitError):
                await server.ask(turns)
        assert len(server.kept) == 1
        assert (await server.ask(turns)).content[-1].text == "Hi."


async def test_fields_of_the_first_request_apply_to_the_whole_reply() -> None:
    async with api(ONE, f"So ## rain.{EOS}") as server:
        first = await server.ask(stop_sequences=["##"], max_tokens=200)
        second = await server.ask(after(QUESTION, first), max_tokens=1)
        assert (second.stop_reason, second.stop_sequence) == ("stop_sequence", "##")
        assert second.content[-1].text == "So "


async def test_foreign_calls_from_code_are_left_out() -> None:
    """A conversation with another server of this API, whose ids differ."""
    caller = {"type": VERSION, "tool_id": "srvtoolu_1"}
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}, "caller": caller}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "secret"}
    output = {
        "type": "code_execution_result",
        "stdout": "rain",
        "stderr": "",
        "return_code": 0,
        "content": [],
    }
    ended = {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_1", "content": output}
    turns: Any = [
        *QUESTION,
        {"role": "assistant", "content": [{"type": "text", "text": "I ask."}, use]},
        {"role": "user", "content": [result]},
        {"role": "assistant", "content": [ended, {"type": "text", "text": "Rain."}]},
    ]
    async with api(f"Hi.{EOS}") as server:
        await server.ask([*turns, *QUESTION])
        assert "secret" not in server.prompt()
        assert "I ask.<tool_call>\nCode execution result: rain" in server.prompt()
        with pytest.raises(anthropic.ConflictError):
            await server.ask(turns[:3])


async def test_other_apis_do_not_continue_the_code_of_messages() -> None:
    async with api(ONE, ANSWER) as server:
        first = await server.ask()
        [use] = calls(first)
        output: Any = [{"type": "function_call_output", "call_id": use.id, "output": "rain"}]
        with pytest.raises(openai.ConflictError, match="another API"):
            await server.served.openai.responses.create(
                model="scripted", input=output, previous_response_id=first.id
            )
        call = {"id": use.id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        turns: Any = [
            *QUESTION,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": use.id, "content": "rain"},
        ]
        with pytest.raises(openai.ConflictError, match="another API"):
            await server.served.openai.chat.completions.create(model="scripted", messages=turns)
        assert len(server.kept) == 1
