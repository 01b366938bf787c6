"""The Messages API through its official client."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import ModelInfo
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.engines.base import EngineError
from tests.support.messages_api import CODE_TOOL, QUESTION, WEATHER, ask, checked, kinds, serving, streamed
from tests.support.responses_api import ANSWER, FIRST, SECOND, engine, prompt, sandbox
from tests.support.scripted import EOS, RefusingEngine, ScriptedEngine, printed
from tests.support.until import until

ULM = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
CONTROL = ("<tool_call>", "</tool_call>", "<|im_end|>")


def control_tokens(scripted: ScriptedEngine, call: int = -1) -> int:
    """Return the number of control tokens in the prompt of one of the engine's calls."""
    known = {scripted.tokenizer.token_id(token) for token in CONTROL}
    return sum(token in known for token in scripted.calls[call][0])


async def test_text() -> None:
    async with serving(ScriptedEngine("Hi." + EOS)) as (served, client):
        options = {"temperature": 0.5, "top_p": 0.9, "top_k": 7}
        reply = await ask(client, system="Be brief.", extra_body=options)
        events = await streamed(client)
        registry = served.app.state.server.metrics.registry
        labels = {"route": "/v1/messages", "status": "200"}
        await until(lambda: registry.get_sample_value("ihgrpo_requests_total", labels) == 2)
        sampling = served.app.state.server.engine.calls[0][1]
    assert reply.content[0].to_dict() == {"type": "text", "text": "Hi."}
    assert (reply.stop_reason, reply.stop_sequence, reply.role) == ("end_turn", None, "assistant")
    assert reply.usage.input_tokens == len("system: Be brief.\nuser: ?\n")
    assert reply.usage.output_tokens == 4
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert kinds(events, "delta text_delta") == [
        *("message_start", "ping", "start text", "stop", "message_delta", "message_stop")
    ]
    final = checked(events)
    assert final["content"] == [{"type": "text", "text": "Hi."}]
    assert final["usage"] == {**reply.usage.to_dict(), "input_tokens": len("user: ?\n")}


async def test_no_code_runs_without_the_tool() -> None:
    scripted, box = engine(), sandbox()
    async with serving(scripted, box) as (_, client):
        reply = await ask(client)
        none = await ask(client, tools=CODE_TOOL, tool_choice={"type": "none"})
    assert box.sessions == []
    assert [block.type for block in (*reply.content, *none.content)] == ["text", "text"]


async def test_code_is_a_server_tool_and_round_trips_by_token_ids() -> None:
    scripted, box = engine(), sandbox()
    async with serving(scripted, box) as (_, client):
        events = await streamed(client, tools=CODE_TOOL)
        final = checked(events)
        sent = [*QUESTION, {"role": "assistant", "content": final["content"]}, *QUESTION]
        await ask(client, sent, tools=CODE_TOOL)
        forged = json.loads(json.dumps(sent))
        forged[1]["content"][2]["content"]["stdout"] = "43"
        await ask(client, forged, tools=CODE_TOOL)
    before, use, result, after = final["content"]
    assert before == {"type": "text", "text": FIRST + SECOND}
    assert (use["type"], use["name"]) == ("server_tool_use", "code_execution")
    assert use["input"] == {"code": "x = 6 * 7\nprint(x)"}
    assert result == {
        "type": "code_execution_tool_result",
        "tool_use_id": use["id"],
        "content": {
            "type": "code_execution_result",
            "stdout": "42",
            "stderr": "",
            "return_code": 0,
            "content": [],
        },
    }
    assert after == {"type": "text", "text": ANSWER}
    assert (final["stop_reason"], final["final_answer"]) == ("end_turn", "42")
    assert final["usage"]["output_tokens_details"]["observation_tokens"] > 0
    assert kinds(events, "delta text_delta") == [
        *("message_start", "ping", "start text", "stop"),
        *("start server_tool_use", "delta input_json_delta", "stop"),
        *("start code_execution_tool_result", "stop"),
        *("start text", "stop", "message_delta", "message_stop"),
    ]
    # Two calls of the engine per episode. The instruction is the last user turn's and contains no token.
    assert control_tokens(scripted, 2) == control_tokens(scripted, 0) + 2  # marker and end of the observation
    assert control_tokens(scripted, 3) == control_tokens(scripted, 0)
    plain = "\nCode execution result: 43\n</tool_call>\n"
    assert f"{FIRST}{SECOND}<tool_call>{plain}{ANSWER}" in prompt(scripted, 3)


@pytest.mark.parametrize(
    ("status", "output", "content"),
    [
        ("error", "NameError: x", {"stderr": "NameError: x", "stdout": "", "return_code": 1}),
        ("oom", "", {"return_code": 137}),
        ("timeout", "", {"error_code": "execution_time_exceeded"}),
        ("sandbox_error", "", {"error_code": "unavailable"}),
    ],
)
async def test_failed_code(status: Any, output: str, content: dict[str, object]) -> None:
    result = replace(printed(""), stderr=output, status=status)
    scripted = engine()
    async with serving(scripted, sandbox(result)) as (_, client):
        reply = await ask(client, tools=CODE_TOOL)
        assert content.items() <= reply.content[2].to_dict()["content"].items()
        await ask(client, [*QUESTION, reply.to_param(), *QUESTION], tools=CODE_TOOL)
    assert control_tokens(scripted, 2) == control_tokens(scripted, 0) + 2


async def test_client_tools_round_trip() -> None:
    scripted = ScriptedEngine(f"I look.\n{ULM}{ULM.replace('Ulm', 'Bonn')}{EOS}", f"Sunny.{EOS}")
    async with serving(scripted) as (_, client):
        events = await streamed(client, tools=[WEATHER])
        final = checked(events)
        text, ulm, bonn = final["content"]
        answer = {
            "type": "tool_result",
            "tool_use_id": ulm["id"],
            "content": [{"type": "text", "text": "hot"}],
        }
        failed = {"type": "tool_result", "tool_use_id": bonn["id"], "content": "no city", "is_error": True}
        content = [answer, failed, {"type": "text", "text": "And?"}]
        sent = [*QUESTION, {"role": "assistant", "content": final["content"]}]
        second = await ask(client, [*sent, {"role": "user", "content": content}], tools=[WEATHER])
    assert text == {"type": "text", "text": "I look."}
    assert (ulm["name"], ulm["input"], bonn["input"]) == ("weather", {"city": "Ulm"}, {"city": "Bonn"})
    assert final["stop_reason"] == "tool_use"
    assert kinds(events, "delta text_delta")[2:] == [
        *("start text", "stop"),
        *["start tool_use", "delta input_json_delta", "stop"] * 2,
        *("message_delta", "message_stop"),
    ]
    assert second.stop_reason == "end_turn"
    assert "tool: hot\ntool: Error: no city\nuser: And?\n" in prompt(scripted)
    assert control_tokens(scripted) == 0


@pytest.mark.parametrize(
    ("choice", "end"),
    [
        ({"type": "tool", "name": "weather"}, '<tool_call>\n{"name": "weather", "arguments":'),
        ({"type": "any"}, '<tool_call>\n{"name": "weather", "arguments":'),
        ({"type": "auto"}, "user: ?\n"),
        ({"type": "none"}, "user: ?\n"),
    ],
)
async def test_tool_choice(choice: Any, end: str) -> None:
    scripted = ScriptedEngine(' {"city": "Ulm"}}\n</tool_call>' + EOS)
    async with serving(scripted) as (_, client):
        reply = await ask(client, tools=[WEATHER], tool_choice=choice)
        count = await client.messages.count_tokens(
            model="scripted", messages=QUESTION, tools=[WEATHER], tool_choice=choice
        )
    assert prompt(scripted, 0).endswith(end)
    assert count.input_tokens == reply.usage.input_tokens == len(scripted.calls[0][0])
    assert (reply.stop_reason == "tool_use") == (choice["type"] in ("tool", "any"))


async def test_parallel_calls_can_be_turned_off() -> None:
    async with serving(ScriptedEngine(ULM + ULM + EOS)) as (_, client):
        choice: Any = {"type": "auto", "disable_parallel_tool_use": True}
        reply = await ask(client, tools=[WEATHER], tool_choice=choice)
    assert [block.type for block in reply.content] == ["tool_use"]
    assert (reply.stop_reason, reply.stop_sequence) == ("tool_use", None)


async def test_call_that_cannot_be_parsed_is_text() -> None:
    broken = 'See <tool_call>\n{"name": "weather", "arguments": {"city": }}'
    async with serving(ScriptedEngine(broken + EOS)) as (_, client):
        final = checked(await streamed(client, tools=[WEATHER]))
    assert final["content"] == [{"type": "text", "text": broken}]
    assert final["stop_reason"] == "end_turn"


async def test_thoughts_are_sealed() -> None:
    scripted = ScriptedEngine("<think>\nHm.\n</think>\n\nSo." + EOS)
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    async with serving(scripted) as (_, client):
        events = await streamed(client, thinking=thinking)
        final = checked(events)
        omitted = await ask(client, thinking={**thinking, "display": "omitted"})
        hidden = omitted.content[0]
        assert isinstance(hidden, anthropic.types.ThinkingBlock)
        await ask(client, [*QUESTION, omitted.to_param(), *QUESTION])
        redacted: Any = {"type": "redacted_thinking", "data": hidden.signature}
        await ask(client, [*QUESTION, {"role": "assistant", "content": [redacted]}, *QUESTION])
        foreign: Any = {"type": "thinking", "thinking": "", "signature": "EqQBCgIYAhIM"}
        raw = await client.messages.with_raw_response.create(
            model="scripted", max_tokens=9, messages=[*QUESTION, {"role": "assistant", "content": [foreign]}]
        )
        assert raw.headers["x-ih-grpo-ignored"] == "messages.thinking"
    thought, text = final["content"]
    assert (thought["thinking"], text["text"]) == ("Hm.", "So.")
    assert (hidden.thinking, hidden.signature != "") == ("", True)
    assert kinds(events, "delta text_delta", "delta thinking_delta")[2:5] == [
        *("start thinking", "delta signature_delta", "stop")
    ]
    assert final["usage"]["output_tokens_details"]["thinking_tokens"] > 0
    for call in (2, 3):
        assert "<think>\nHm.\n</think>" in prompt(scripted, call)
    assert "<think>" not in prompt(scripted, 4)


async def test_stop_reasons() -> None:
    scripted = ScriptedEngine("abcdefgh" + EOS)
    scripted.context_length = len("user: ?\n") + 5
    async with serving(scripted) as (_, client):
        stopped = await ask(client, stop_sequences=["zz", "cd"])
        cut = await ask(client, max_tokens=3)
        full = await ask(client, max_tokens=300)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "cd")
    assert stopped.content[0].to_dict()["text"] == "ab"
    assert (cut.stop_reason, cut.content[0].to_dict()["text"]) == ("max_tokens", "abc")
    assert (full.stop_reason, full.content[0].to_dict()["text"]) == ("model_context_window_exceeded", "abcde")


async def test_last_assistant_message_is_continued() -> None:
    scripted = ScriptedEngine("B)" + EOS)
    async with serving(scripted) as (_, client):
        await ask(client, [*QUESTION, {"role": "assistant", "content": "The best answer is ("}])
    assert prompt(scripted).endswith("assistant: The best answer is (")


async def test_official_tool_runner_finishes_a_loop() -> None:
    cities = []

    @anthropic.beta_async_tool
    async def weather(city: str) -> str:
        """Weather of a city."""
        cities.append(city)
        return f"sunny in {city}"

    scripted = ScriptedEngine(ULM + EOS, ULM.replace("Ulm", "Bonn") + EOS, "Both sunny." + EOS)
    async with serving(scripted) as (_, client):
        runner = client.beta.messages.tool_runner(
            model="scripted", max_tokens=500, messages=QUESTION, tools=[weather]
        )
        final = await runner.until_done()
    assert cities == ["Ulm", "Bonn"]
    assert final.content[0].to_dict()["text"] == "Both sunny."
    assert prompt(scripted).count("tool: sunny in") == 2


async def test_final_form_by_schema() -> None:
    scripted = ScriptedEngine('{"degrees": 21}' + EOS)
    scripted.capabilities = frozenset({"json_schema"})
    schema = {"type": "object", "properties": {"degrees": {"type": "integer"}}}
    form: Any = {"format": {"type": "json_schema", "schema": schema}}
    async with serving(scripted) as (_, client):
        await ask(client, output_config=form)
    assert json.loads(scripted.calls[0][1].json_schema or "") == schema
    async with serving(RefusingEngine("")) as (_, client):
        for stream in (False, True):
            with pytest.raises(anthropic.BadRequestError) as caught:
                await ask(client, output_config=form, stream=stream)
            assert caught.value.body["error"]["param"] == "output_config.format"  # type: ignore[index]


async def test_error_inside_a_stream() -> None:
    class Failing(ScriptedEngine):
        async def generate(self, *args: Any, **options: Any) -> Any:
            async for chunk in super().generate(*args, **options):
                yield chunk
                raise EngineError("out of memory")

    async with serving(Failing("ab" + EOS)) as (_, client):
        events = await streamed(client)
        with pytest.raises(anthropic.APIStatusError, match="out of memory"):
            async with client.messages.stream(model="scripted", max_tokens=9, messages=QUESTION) as stream:
                await stream.get_final_message()
    assert kinds(events) == ["message_start", "ping", "start text", "delta text_delta", "error"]
    assert events[-1]["error"]["type"] == "api_error"


async def test_silence_is_filled_with_pings() -> None:
    async with serving(ScriptedEngine("ab" + EOS, delay_s=0.2), keep_alive_s=0.05) as (_, client):
        events = await streamed(client)
    assert kinds(events).count("ping") > 2
    assert checked(events)["content"][0]["text"] == "ab"


async def test_leaving_client_ends_the_episode() -> None:
    scripted = ScriptedEngine("x" * 500 + EOS, delay_s=0.01)
    async with serving(scripted) as (served, client):
        async with client.messages.stream(model="scripted", max_tokens=999, messages=QUESTION) as stream:
            async for _ in stream.text_stream:
                break
        await until(lambda: scripted.open_streams == 0)
        await until(lambda: served.app.state.server.admission.running == 0)


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"not": value}
    return value


def called(arguments: Any) -> Any:
    """A conversation with one call of a tool."""
    use = {"type": "tool_use", "id": "1", "name": "weather", "input": arguments}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "x"}
    turns = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    return [*QUESTION, *turns]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("", {}),
        ('{"city": "Ulm"}', {"city": "Ulm"}),
        ('{"city', '{"city'),
        ({"city": "Ulm"}, {"city": "Ulm"}),
    ],
)
async def test_input_in_the_history_may_be_text(written: Any, read: Any) -> None:
    scripted = ScriptedEngine("Hi." + EOS)
    async with serving(scripted) as (_, client):
        await ask(client, called(written), tools=[WEATHER])
    assert f'"arguments": {json.dumps(read)}' in prompt(scripted)


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"max_tokens": None}, 400, "max_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"sytem": "x"}, 400, "sytem"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            400,
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, 400, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_text"}]}]},
            400,
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, 400, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
            400,
            "messages[0].content[0].tool_use_id",
        ),
        (
            {
                "messages": [
                    *QUESTION,
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]},
                ]
            },
            400,
            "messages[1].content",
        ),
        ({"tools": [{"name": "f"}]}, 400, "tools[0].input_schema"),
        ({"tools": [{"name": "f", "input_schema": {"type": "no"}}]}, 400, "tools[0].input_schema"),
        ({"tools": [{"name": "f g", "input_schema": {}}]}, 400, "tools[0].name"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools[0]"),
        ({"tools": [WEATHER, WEATHER]}, 400, "tools"),
        ({"tool_choice": {"type": "any"}}, 400, "tool_choice"),
        ({"tool_choice": "any"}, 400, "tool_choice"),
        ({"tool_choice": {"type": "tool"}, "tools": [WEATHER]}, 400, "tool_choice.name"),
        ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [WEATHER]}, 400, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}, "tools": CODE_TOOL}, 400, "tool_choice"),
        ({"tool_choice": {"type": "auto", "nam": "g"}}, 400, "tool_choice.nam"),
        ({"container": "container_1"}, 400, "container"),
        ({"deferral": {"max_turns": 2}}, 400, "deferral"),
        ({"deferral": {"max_turns": 99}, "tools": CODE_TOOL}, 400, "deferral.max_turns"),
        ({"stop_sequences": ["x" * 300]}, 400, "stop_sequences[0]"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, 400, "output_config.format"),
        ({"n": 2}, 400, "n"),
        ({"tools": [{"name": "f", "input_schema": nested(600)}]}, 400, "tools[0].input_schema"),
        ({"thread": {"type": "create"}}, 400, "thread"),
        ({"compaction": {"type": "summarize"}}, 400, "compaction"),
    ],
)
async def test_errors_name_their_field(change: dict[str, Any], status: int, param: str) -> None:
    body = {"model": "scripted", "max_tokens": 9, "messages": QUESTION, **change}
    async with (
        serving(ScriptedEngine("Hi." + EOS)) as (served, _),
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        answer = await http.post(
            "/v1/messages", content=json.dumps(body), headers={"content-type": "application/json"}
        )
    error = answer.json()
    assert (answer.status_code, error["error"].get("param")) == (status, param), error
    assert error["type"] == "error"
    assert error["error"]["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert error["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]


async def test_prompt_that_is_too_long() -> None:
    scripted = ScriptedEngine("Hi." + EOS)
    scripted.context_length = 4
    async with serving(scripted) as (_, client):
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            await ask(client)
        assert (await client.messages.count_tokens(model="scripted", messages=QUESTION)).input_tokens == 8


@pytest.mark.parametrize(
    ("change", "ignored"),
    [
        (
            {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
            "system[0].cache_control",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}]},
            "messages[0].content[0].cache_control",
        ),
        ({"messages": [{"role": "user", "content": "x", "id": "1"}]}, "messages[0].id"),
        ({"tools": [{**WEATHER, "eager_input_streaming": True}]}, "tools[0].eager_input_streaming"),
        ({"tools": [WEATHER, {"type": "web_search_20250305", "name": "web_search"}]}, "tools[1]"),
        ({"context_management": {"edits": []}}, "context_management"),
        ({"output_config": {"effort": "high"}}, "output_config.effort"),
        ({"thinking": {"type": "adaptive"}, "tools": [WEATHER], "tool_choice": {"type": "any"}}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive"}, "tools": CODE_TOOL}, "thinking"),
        ({"deferral": {"live_output": True}, "tools": CODE_TOOL}, "deferral.live_output"),
        ({"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, "mcp_servers"),
        ({"service_tier": "auto", "metadata": {"user_id": "u"}, "betas": None}, None),
        (
            {
                "messages": [
                    *QUESTION,
                    {"role": "assistant", "content": [{"type": "web_search_tool_result", "content": []}]},
                    *QUESTION,
                ]
            },
            "messages[1].content[0]",
        ),
    ],
)
async def test_harmless_fields_are_ignored_and_reported(change: dict[str, Any], ignored: str | None) -> None:
    body = {"model": "scripted", "max_tokens": 9, "messages": QUESTION, **change}
    async with (
        serving(ScriptedEngine("Hi." + EOS)) as (served, _),
        httpx.AsyncClient(base_url=served.url) as http,
    ):
        answer = await http.post("/v1/messages?beta=true", json=body, headers={"anthropic-beta": "x-2026"})
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-ih-grpo-ignored") == ignored


async def test_keys_and_unknown_routes_in_anthropics_form() -> None:
    async with serving(ScriptedEngine("Hi." + EOS), key="sk-1", api_keys="sk-1") as (served, client):
        assert (await ask(client)).stop_reason == "end_turn"
        with pytest.raises(anthropic.AuthenticationError) as unknown_key:
            await ask(client.with_options(api_key="wrong"))
        with pytest.raises(anthropic.NotFoundError, match="Did you mean /v1/messages") as lost:
            await ask(client.with_options(base_url=f"{served.url}/v1"))
        with pytest.raises(anthropic.NotFoundError) as batches:
            await client.messages.batches.list()
        async with httpx.AsyncClient(base_url=served.url, headers={"x-api-key": "sk-1"}) as http:
            wrong = await http.get("/v1/messages")
    for caught in (unknown_key, lost, batches):
        assert caught.value.body["type"] == "error"  # type: ignore[index]
    assert unknown_key.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    assert (wrong.status_code, wrong.json()["error"]["details"]["error_code"]) == (405, "method_not_allowed")


async def test_models_in_the_form_of_both_apis() -> None:
    async with serving(ScriptedEngine("")) as (served, client):
        [model] = [model async for model in client.models.list()]
        same = await client.models.retrieve("scripted")
        [openai_model] = [model async for model in served.openai.models.list()]
    ModelInfo.model_validate(model.to_dict())
    assert (model.id, model.type, model.max_input_tokens) == ("scripted", "model", 10_000)
    assert model == same
    assert model.created_at.timestamp() == openai_model.created


async def test_trace_names_the_user() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with serving(engine()) as (served, client):
        served.app.state.server.tracer = provider.get_tracer("test")
        reply = await ask(client, tools=CODE_TOOL, metadata={"user_id": "me"})
    [span] = [span for span in exporter.get_finished_spans() if span.name == "messages scripted"]
    assert span.attributes is not None
    assert span.attributes["enduser.id"] == "me"
    assert span.attributes["ih_grpo.request.id"] == reply.id
    assert span.attributes["ih_grpo.deferred"] is True
    names = {other.name for other in exporter.get_finished_spans()}
    assert {"invoke python", "execute python", "deliver python"} <= names


async def test_overload_and_shutdown_in_anthropics_form() -> None:
    scripted = ScriptedEngine("x" * 300 + EOS, delay_s=0.01)
    async with serving(scripted, max_concurrent_episodes=1, max_queued_episodes=0) as (served, client):
        async with client.messages.stream(model="scripted", max_tokens=999, messages=QUESTION) as stream:
            async for _ in stream.text_stream:
                break
            with pytest.raises(anthropic.RateLimitError):
                await ask(client)
        served.app.state.drain.begin()
        with pytest.raises(anthropic.InternalServerError) as down:
            await ask(client)
    assert down.value.status_code == 503
    assert down.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
