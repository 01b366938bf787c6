"""Code that calls functions of the client: suspended episodes in both APIs, with a scripted sandbox."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import AbstractAsyncContextManager
from typing import Any

import openai
import pytest

from service.api.chat.suspension import Suspensions
from tests.support.response_events import checked, collected
from tests.support.scripted import EOS, ResumingEngine, ScriptedEngine
from tests.support.serving import Served, make_app, serve
from tests.support.tool_sandbox import ToolSandbox

TURN = "Let me see.\n```python\n{}\n```<tool_call>"
ONE = TURN.format('call weather {"city": "Ulm"}')
TWO = TURN.format('all weather [{"city": "Ulm"}, {"city": "Bonn"}]')
AFTER = TURN.format('call weather {"city": "Ulm"}\ncall weather {"city": "Bonn"}')
ANSWER = f"So \\boxed{{rain}}.{EOS}"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Weather of a city.",
    "parameters": PARAMETERS,
    "allowed_callers": ["programmatic"],
}
CHAT_WEATHER: Any = {
    "type": "function",
    "function": {key: value for key, value in WEATHER.items() if key != "type"},
}
OUTPUTS: Any = ["code_interpreter_call.outputs"]
KEYS = ",".join("sha256:" + hashlib.sha256(name).hexdigest() for name in (b"ann", b"bob"))


class Suspending:
    """A server, its engine and sandbox."""

    def __init__(self, served: Served, engine: ScriptedEngine, sandbox: ToolSandbox) -> None:
        self.client, self.engine, self.sandbox = served.openai, engine, sandbox
        self.url, self.app = served.url, served.app
        self.kept: Suspensions = served.app.state.suspensions

    async def respond(self, items: Any = "Rain?", **more: Any) -> Any:
        fields = {"model": "scripted", "tools": [WEATHER], "include": OUTPUTS, **more}
        return await self.client.responses.create(input=items, **fields)

    async def ended(self, response_id: str) -> Any:
        """Wait for the end of a background response."""
        stream = await self.client.responses.retrieve(response_id, stream=True)
        async for event in stream:
            last = event
        return last.response  # type: ignore[union-attr]

    async def chat(self, messages: list[Any], **more: Any) -> Any:
        fields = {"model": "scripted", "tools": [CHAT_WEATHER], **more}
        return await self.client.chat.completions.create(messages=messages, **fields)

    def prompt(self, call: int = -1) -> str:
        return self.engine.tokenizer.decode(self.engine.calls[call][0])


class _Server:
    def __init__(self, *turns: str, engine: type[ScriptedEngine] = ScriptedEngine, **options: Any) -> None:
        self._engine, self._sandbox = engine(*turns), ToolSandbox()
        self._app = make_app(self._engine, self._sandbox, **{"max_suspended": 16, **options})
        key = "ann" if "api_keys" in options else "none"
        self._serving: AbstractAsyncContextManager[Served] = serve(self._app, key)

    async def __aenter__(self) -> Suspending:
        return Suspending(await self._serving.__aenter__(), self._engine, self._sandbox)

    async def __aexit__(self, *error: Any) -> None:
        await self._serving.__aexit__(*error)


serving = _Server


def calls(response: Any) -> list[Any]:
    return [item for item in response.output if item.type == "function_call"]


def outputs(response: Any) -> list[Any]:
    return [
        {
            "type": "function_call_output",
            "call_id": call.call_id,
            "output": f"rain in {json.loads(call.arguments)['city']}",
        }
        for call in calls(response)
    ]


def code(response: Any) -> Any:
    return next(item for item in response.output if item.type == "code_interpreter_call")


async def test_response_ends_with_the_calls_and_the_next_one_continues() -> None:
    async with serving(ONE, ANSWER) as server:
        first = await server.respond()
        assert [item.type for item in first.output] == ["message", "code_interpreter_call", "function_call"]
        [call] = calls(first)
        assert (first.status, call.status, call.name) == ("completed", "completed", "weather")
        assert (call.caller.type, call.caller.caller_id) == ("program", code(first).id)
        assert (code(first).status, code(first).outputs) == ("interpreting", None)
        assert first.suspended["expires_at"] > first.created_at
        assert len(server.kept) == 1
        assert server.sandbox.sessions[0].log == ["suspend"]
        second = await server.respond(outputs(first), previous_response_id=first.id)
        assert [item.type for item in second.output] == ["code_interpreter_call", "message"]
        assert (code(second).status, code(second).outputs[0].logs) == ("completed", "rain in Ulm")
        assert code(second).code == code(first).code
        assert second.final_answer == "rain"
        assert second.continued_from == first.id
        assert len(server.kept) == 0
        assert server.sandbox.sessions[0].log == ["suspend", "resume", "close"]
        assert len(server.sandbox.sessions) == 1
        total = first.usage.total_tokens + second.usage.output_tokens
        assert (second.usage.input_tokens, second.usage.total_tokens) == (first.usage.total_tokens, total)


async def test_calls_at_the_same_time_are_items_of_one_response() -> None:
    async with serving(TWO, ANSWER) as server:
        first = await server.respond()
        assert [json.loads(call.arguments) for call in calls(first)] == [{"city": "Ulm"}, {"city": "Bonn"}]
        second = await server.respond(outputs(first)[::-1], previous_response_id=first.id)
        assert code(second).outputs[0].logs == "rain in Ulm\nrain in Bonn"


async def test_code_can_wait_several_times() -> None:
    async with serving(AFTER, ANSWER, f"Bye.{EOS}") as server:
        first = await server.respond()
        second = await server.respond(outputs(first), previous_response_id=first.id)
        assert [item.type for item in second.output] == ["code_interpreter_call", "function_call"]
        third = await server.respond(outputs(second), previous_response_id=second.id)
        assert code(third).outputs[0].logs == "rain in Ulm\nrain in Bonn"
        await server.respond("Sure?", previous_response_id=third.id)
        assert f"{AFTER}\nCode execution result: rain in Ulm\nrain in Bonn\n</tool_call>\n" in server.prompt()


@pytest.mark.parametrize("streamed", [False, True])
async def test_whole_conversation_continues_the_code_too(streamed: bool) -> None:
    async with serving(TWO, ANSWER, f"Bye.{EOS}") as server:
        conversation: list[Any] = [{"role": "user", "content": "Rain?"}]
        for _ in range(2):
            if streamed:
                events = await collected(await server.respond(conversation, stream=True))
                checked(events)
            response = await server.respond(conversation) if not streamed else None
            output = (
                [item.model_dump(exclude_none=True) for item in response.output]
                if response is not None
                else events[-1]["response"]["output"]
            )
            conversation += output
            conversation += [
                {"type": "function_call_output", "call_id": item["call_id"], "output": "rain"}
                for item in output
                if item["type"] == "function_call"
            ]
        assert output[0]["outputs"][0]["logs"] == "rain\nrain"
        await server.respond([*conversation, {"role": "user", "content": "Sure?"}])
        ids = server.engine.calls[-1][0]
        reply = TWO + "\nCode execution result: rain\nrain\n</tool_call>\nSo \\boxed{rain}."
        wanted = server.engine.tokenizer.encode(reply, allow_special=True)
        assert any(ids[at : at + len(wanted)] == wanted for at in range(len(ids)))
        assert "call_code" not in server.prompt()


async def test_events_of_both_streams() -> None:
    async with serving(ONE, ANSWER) as server:
        events = await collected(await server.respond(stream=True))
        final = checked(events)
        [call] = [item for item in final["output"] if item["type"] == "function_call"]
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert call in done
        answer = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
        events = await collected(
            await server.respond([answer], previous_response_id=final["id"], stream=True)
        )
        checked(events)
        kinds = [event["type"] for event in events if "code_interpreter" in event["type"]]
        assert kinds == [
            "response.code_interpreter_call.in_progress",
            "response.code_interpreter_call_code.delta",
            "response.code_interpreter_call_code.done",
            "response.code_interpreter_call.interpreting",
            "response.code_interpreter_call.completed",
        ]


@pytest.mark.parametrize("streamed", [False, True])
async def test_chat_ends_with_tool_calls_and_continues(streamed: bool) -> None:
    async with serving(TWO, ANSWER, f"Bye.{EOS}") as server:
        messages: list[Any] = [{"role": "user", "content": "Rain?"}]
        reasons = []
        while not reasons or reasons[-1] == "tool_calls":
            if streamed:
                fields: Any = {"model": "scripted", "tools": [CHAT_WEATHER], "messages": messages}
                async with server.client.chat.completions.stream(**fields) as stream:
                    choice: Any = (await stream.get_final_completion()).choices[0]
            else:
                choice = (await server.chat(messages)).choices[0]
            reasons.append(choice.finish_reason)
            messages.append(choice.message.model_dump(exclude_none=True))
            for call in choice.message.tool_calls or ():
                assert call.function.name == "weather"
                content = f"rain in {json.loads(call.function.arguments)['city']}"
                messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
        assert reasons == ["tool_calls", "stop"]
        assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
        executed = messages[-1]["executed_tools"][-1]
        assert (executed["status"], executed["output"]) == ("ok", "rain in Ulm\nrain in Bonn")
        assert [call["by_client"] for call in executed["calls"]] == [True, True]
        assert messages[1]["executed_tools"][-1]["status"] == "suspended"
        await server.chat([*messages, {"role": "user", "content": "Sure?"}])
        ids = server.engine.calls[-1][0]
        reply = TWO + "\nCode execution result: rain in Ulm\nrain in Bonn\n</tool_call>\nSo \\boxed{rain}."
        wanted = server.engine.tokenizer.encode(reply, allow_special=True)
        assert any(ids[at : at + len(wanted)] == wanted for at in range(len(ids)))


async def test_functions_of_the_model_and_of_code_are_kept_apart() -> None:
    direct = {**WEATHER, "name": "now", "parameters": None, "allowed_callers": ["direct"]}
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    engine: Any = ResumingEngine
    async with serving(ONE, f"It rains. {call}{EOS}", ANSWER, engine=engine) as server:
        first = await server.respond(tools=[WEATHER, direct])
        second = await server.respond(outputs(first), previous_response_id=first.id, tools=[WEATHER, direct])
        [now] = calls(second)
        assert (now.name, now.caller) == ("now", None)
        answer = {"type": "function_call_output", "call_id": now.call_id, "output": "noon"}
        await server.respond([answer], previous_response_id=second.id, tools=[WEATHER, direct])
        assert "tool: noon\n" in server.prompt()
        assert "def weather(city: str) -> str:" in server.prompt()
        assert '"name": "weather"' not in server.prompt()


@pytest.mark.parametrize("streamed", [False, True])
async def test_openais_tool_shows_code_as_programs(streamed: bool) -> None:
    tools: Any = [WEATHER, {"type": "programmatic_tool_calling"}]
    async with serving(ONE, ANSWER, f"Bye.{EOS}") as server:
        if streamed:
            body = checked(await collected(await server.respond(tools=tools, stream=True)))
            first = await server.client.responses.retrieve(str(body["id"]))
        else:
            first = await server.respond(tools=tools)
        assert [tool.type for tool in first.tools] == ["function", "programmatic_tool_calling"]
        assert [item.type for item in first.output] == ["message", "program", "function_call"]
        _, program, call = first.output
        assert (program.code, call.caller.caller_id) == ('call weather {"city": "Ulm"}', program.call_id)
        second = await server.respond(outputs(first), previous_response_id=first.id, tools=tools)
        assert [item.type for item in second.output] == ["program_output", "message"]
        done = second.output[0]
        assert (done.call_id, done.result, done.status) == (program.call_id, "rain in Ulm", "completed")
        items = [item.model_dump(exclude_none=True) for item in (*first.output, *second.output)]
        items[3:3] = outputs(first)
        ask = {"role": "user", "content": "Rain?"}
        await server.respond([ask, *items, {**ask, "content": "Sure?"}], tools=tools)
        ids = server.engine.calls[-1][0]
        reply = ONE + "\nCode execution result: rain in Ulm\n</tool_call>\nSo \\boxed{rain}."
        wanted = server.engine.tokenizer.encode(reply, allow_special=True)
        assert any(ids[at : at + len(wanted)] == wanted for at in range(len(ids)))


async def test_functions_are_for_the_model_only_by_default() -> None:
    tools: Any = [WEATHER, {"type": "programmatic_tool_calling"}]
    async with serving(ANSWER) as server:
        only = {**WEATHER, "allowed_callers": None}
        await server.respond(tools=[only, tools[1]])
        assert "def weather" not in server.prompt()


async def test_outputs_with_a_schema_are_values() -> None:
    number = {**WEATHER, "output_schema": {"type": "object", "properties": {"mm": {"type": "number"}}}}
    async with serving(ONE, ANSWER) as server:
        first = await server.respond(tools=[number])
        [given] = outputs(first)
        second = await server.respond([{**given, "output": '{"mm": 3}'}], previous_response_id=first.id)
        assert code(second).outputs[0].logs == '{"mm": 3}'
    for text, error in (("x", "the client's output is not JSON"), ('{"mm": "x"}', "invalid result")):
        async with serving(ONE, ANSWER) as server:
            first = await server.respond(tools=[number])
            [given] = outputs(first)
            second = await server.respond([{**given, "output": text}], previous_response_id=first.id)
            assert error in code(second).outputs[0].logs


async def test_invalid_arguments_are_an_error_for_the_code_only() -> None:
    async with serving(TURN.format('call weather {"town": "Ulm"}'), ANSWER) as server:
        response = await server.respond()
        assert calls(response) == []
        assert "tools.ToolError: weather()" in code(response).outputs[0].logs


@pytest.mark.parametrize("api", ["responses", "chat"])
async def test_missing_and_unknown_outputs_are_rejected_and_can_be_corrected(api: str) -> None:
    async with serving(TWO, ANSWER) as server:
        if api == "responses":
            first = await server.respond()
            given = outputs(first)
            send = lambda items: server.respond(items, previous_response_id=first.id)  # noqa: E731
            unknown = {"type": "function_call_output", "call_id": "call_x", "output": "?"}
        else:
            choice = (await server.chat([{"role": "user", "content": "Rain?"}])).choices[0]
            start = [{"role": "user", "content": "Rain?"}, choice.message.model_dump(exclude_none=True)]
            given = [
                {"role": "tool", "tool_call_id": call.id, "content": "rain"}
                for call in choice.message.tool_calls
            ]
            send = lambda items: server.chat([*start, *items])  # noqa: E731
            unknown = {"role": "tool", "tool_call_id": "call_x", "content": "?"}
        with pytest.raises(openai.BadRequestError, match="these are missing: call_code") as error:
            await send(given[:1])
        assert error.value.code == "missing_tool_outputs"
        with pytest.raises(openai.BadRequestError, match="call has the id 'call_x'"):
            await send([*given, unknown])
        if api == "responses":
            with pytest.raises(openai.BadRequestError, match="waits for outputs"):
                await server.respond("And now?", previous_response_id=first.id)
            with pytest.raises(openai.BadRequestError, match="only these"):
                await send([{"role": "user", "content": "Hm."}, *given])
        assert len(server.kept) == 1
        await send(given)
        assert len(server.kept) == 0
        with pytest.raises(openai.ConflictError, match="No code waits for the output of 'call_code") as gone:
            await send(given)
        assert gone.value.code == "code_not_waiting"


async def test_outputs_of_another_key_reach_no_code() -> None:
    async with serving(ONE, ANSWER, api_keys=KEYS) as server:
        first = await server.respond()
        start = [{"role": "user", "content": "Rain?"}, *first.to_dict()["output"]]
        bob = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="bob", max_retries=0)
        async with bob:
            fields: Any = {"model": "scripted", "tools": [WEATHER]}
            with pytest.raises(openai.ConflictError, match="No code waits"):
                await bob.responses.create(input=[*start, *outputs(first)], **fields)
            with pytest.raises(openai.NotFoundError):
                await bob.responses.create(input=outputs(first), previous_response_id=first.id, **fields)
            for act in (bob.responses.delete, bob.responses.cancel):
                with pytest.raises(openai.NotFoundError):
                    await act(first.id)
        assert len(server.kept) == 1
        second = await server.respond(outputs(first), previous_response_id=first.id)
        assert second.final_answer == "rain"


@pytest.mark.parametrize("act", ["cancel", "delete"])
async def test_cancelled_and_deleted_responses_release_the_container(act: str) -> None:
    async with serving(ONE, ANSWER) as server:
        first = await server.respond()
        await getattr(server.client.responses, act)(first.id)
        assert len(server.kept) == 0
        assert server.sandbox.sessions[0].log[-1] == "close"
        error: Any = openai.ConflictError if act == "cancel" else openai.NotFoundError
        with pytest.raises(error):
            await server.respond(outputs(first), previous_response_id=first.id)


async def test_code_waits_for_a_limited_time() -> None:
    async with serving(ONE, ANSWER) as server:
        first = await server.respond()
        server.kept._clock = lambda: 1e12
        await server.kept.sweep()
        assert server.sandbox.sessions[0].log[-1] == "close"
        with pytest.raises(openai.ConflictError, match="has expired"):
            await server.respond(outputs(first), previous_response_id=first.id)


async def test_a_key_holds_a_limited_number_of_containers() -> None:
    async with serving(*[ONE] * 3, ANSWER, api_keys=KEYS, suspended_per_key=2, max_suspended=3) as server:
        responses = [await server.respond() for _ in range(3)]
        assert len(server.kept) == 2
        with pytest.raises(openai.ConflictError):
            await server.respond(outputs(responses[0]), previous_response_id=responses[0].id)
        assert [session.log[-1] for session in server.sandbox.sessions] == ["close", "suspend", "suspend"]
        # Another key is not affected by this one's.
        server.engine._turns[:] = [ONE]
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="bob", max_retries=0) as bob:
            for _ in range(2):
                await bob.responses.create(model="scripted", input="Rain?", tools=[WEATHER])
        assert len(server.kept) == 3
        assert server.sandbox.sessions[1].log[-1] == "close"


async def test_memory_of_waiting_containers_is_limited() -> None:
    async with serving(ONE, parked_memory_mb=1100) as server:
        for _ in range(3):
            await server.respond()
        assert len(server.kept) == 2


async def test_a_waiting_reply_uses_no_place_of_an_episode() -> None:
    async with serving(ONE, f"Hi.{EOS}", max_concurrent_episodes=1) as server:
        first = await server.respond()
        assert (await server.respond("Hello", tools=[])).output_text == "Hi."
        assert (await server.respond(outputs(first), previous_response_id=first.id)).output_text == "Hi."


async def test_a_request_without_a_place_leaves_the_code_waiting() -> None:
    options = {"max_concurrent_episodes": 1, "max_queued_episodes": 0}
    async with serving(ONE, f"Hi.{EOS}", **options) as server:
        first = await server.respond()
        async with server.app.state.server.admission.admit(1):
            with pytest.raises(openai.RateLimitError):
                await server.respond(outputs(first), previous_response_id=first.id)
        assert len(server.kept) == 1
        assert (await server.respond(outputs(first), previous_response_id=first.id)).output_text == "Hi."


async def test_two_requests_can_not_continue_the_same_code() -> None:
    async with serving(ONE, ANSWER) as server:
        first = await server.respond()
        both = await asyncio.gather(
            *(server.respond(outputs(first), previous_response_id=first.id) for _ in range(2)),
            return_exceptions=True,
        )
        assert sorted(type(one).__name__ for one in both) == ["ConflictError", "Response"]


async def test_response_of_another_process_is_reported() -> None:
    async with serving(ONE, ANSWER) as server:
        first = await server.respond()
        live = server.kept.of_reply(first.id, "")
        assert live is not None
        server.kept.take(live)
        server.kept.server = "another"
        with pytest.raises(openai.ConflictError, match="another process") as error:
            await server.respond(outputs(first), previous_response_id=first.id)
        assert error.value.code == "code_waits_elsewhere"
        await live.end()


async def test_shutdown_ends_the_waiting_code() -> None:
    async with serving(ONE, ANSWER) as server:
        await server.respond()
        sessions = server.sandbox.sessions
    assert sessions[0].log[-1] == "close"


async def test_background_response_waits_too() -> None:
    async with serving(ONE, ANSWER) as server:
        first = await server.respond(background=True)
        done = await server.ended(first.id)
        second = await server.respond(outputs(done), previous_response_id=first.id, background=True)
        assert (await server.ended(second.id)).final_answer == "rain"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "model"),
        ({"tools": [{**WEATHER, "allowed_callers": ["code"]}]}, "allowed_callers"),
        ({"tools": [{**WEATHER, "output_schema": {"type": "x"}}]}, "output_schema"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}}, "tool_choice"),
    ],
)
async def test_rejects_invalid_requests(change: dict[str, Any], message: str) -> None:
    async with serving(ONE, ANSWER) as server:
        with pytest.raises(openai.APIStatusError, match=message):
            await server.respond(**change)


async def test_chat_needs_a_single_choice_and_code() -> None:
    async with serving(ONE, ANSWER) as server:
        messages = [{"role": "user", "content": "Rain?"}]
        with pytest.raises(openai.BadRequestError, match="single choice"):
            await server.chat(messages, n=2)
        with pytest.raises(openai.BadRequestError, match="code must be able to run"):
            await server.chat(messages, extra_body={"deferral": {"enabled": False}})
