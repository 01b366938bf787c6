"""``POST /v1/responses`` through the official SDK over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import select

from service.engines.base import EngineError
from service.store.tables import responses
from tests.support.response_events import checked, collected, kinds
from tests.support.responses_api import (
    ANSWER,
    CODE_TOOL,
    FIRST,
    MARKER,
    SECOND,
    ask,
    engine,
    prompt,
    sandbox,
    serving,
)
from tests.support.scripted import EOS, RefusingEngine, ScriptedEngine
from tests.support.serving import Served
from tests.support.until import until


async def test_text_without_tools() -> None:
    scripted = ScriptedEngine("Hello." + EOS)
    async with serving(scripted) as served:
        response = await ask(served, "Hi", instructions="Be kind.", metadata={"a": "b"}, temperature=0.5)
    assert response.output_text == "Hello."
    assert response.status == "completed"
    assert (response.temperature, response.metadata, response.instructions) == (0.5, {"a": "b"}, "Be kind.")
    assert prompt(scripted) == "system: Be kind.\nuser: Hi\n"
    usage = response.usage
    assert usage.input_tokens == len(prompt(scripted))
    assert usage.output_tokens == len("Hello.") + 1  # its end counts
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


async def test_stream_is_consistent_and_ends_with_done() -> None:
    async with serving(ScriptedEngine("Hello." + EOS)) as served:
        events = await collected(await ask(served, stream=True))
        final = checked(events)
        async with httpx.AsyncClient() as client:
            body = {"model": "scripted", "input": "Hi", "stream": True}
            raw = (await client.post(f"{served.url}/v1/responses", json=body)).text
    assert kinds(events, "output_text.delta") == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert final["output"][0]["content"][0]["text"] == "Hello."
    *parts, done, nothing = raw.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    for part in parts:
        name, _, data = part.partition("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


async def test_sdk_stream_helper_accepts_the_stream() -> None:
    async with (
        serving(engine()) as served,
        served.openai.responses.stream(model="scripted", input="6 * 7?", tools=CODE_TOOL) as stream,
    ):
        response = await stream.get_final_response()
    assert response.output_text == FIRST + SECOND + ANSWER


async def test_no_code_runs_without_the_tool() -> None:
    scripted, box = ScriptedEngine(FIRST + SECOND + MARKER + " on" + EOS), sandbox()
    async with serving(scripted, box) as served:
        plain = await ask(served)
        off = await ask(served, tools=CODE_TOOL, tool_choice="none")
    for response in (plain, off):
        assert response.output_text == FIRST + SECOND + MARKER + " on"
        assert [item.type for item in response.output] == ["message"]
    assert box.sessions == []
    assert prompt(scripted) == "user: 6 * 7?\n"


async def test_token_limit_makes_the_response_incomplete() -> None:
    async with serving(ScriptedEngine("Hello." + EOS)) as served:
        response = await ask(served, max_output_tokens=3)
        events = await collected(await ask(served, max_output_tokens=3, stream=True))
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output_text, response.output[0].status) == ("Hel", "incomplete")
    final = checked(events)
    assert (events[-1]["type"], final["status"]) == ("response.incomplete", "incomplete")
    assert final["completed_at"] is None


async def test_empty_reply_is_an_empty_message() -> None:
    async with serving(ScriptedEngine(EOS)) as served:
        assert (
            checked(await collected(await ask(served, stream=True)))["output"][0]["content"][0]["text"] == ""
        )


async def test_thoughts_are_separate_items() -> None:
    scripted = ScriptedEngine("<think>\nIt is 6 * 7.\n</think>\n\nIt is 42." + EOS)
    async with serving(scripted) as served:
        events = await collected(await ask(served, stream=True, reasoning={"effort": "medium"}))
    thought, message = checked(events)["output"]
    assert thought["type"] == "reasoning"
    assert thought["content"] == [{"type": "reasoning_text", "text": "It is 6 * 7."}]
    assert message["content"][0]["text"] == "It is 42."
    assert "reasoning_text.delta" in kinds(events)
    assert events[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert events[-1]["response"]["reasoning"]["effort"] == "medium"


async def test_logprobs_are_included_on_request() -> None:
    include: Any = ["message.output_text.logprobs"]
    async with serving(ScriptedEngine("Hi." + EOS)) as served:
        events = await collected(await ask(served, stream=True, include=include, top_logprobs=1))
        without = await ask(served)
    logprobs = [
        item for event in events if event["type"].endswith("text.delta") for item in event["logprobs"]
    ]
    assert [item["token"] for item in logprobs] == ["H", "i", "."]
    assert checked(events)["output"][0]["content"][0]["logprobs"] == logprobs
    assert without.output[0].content[0].logprobs == []


async def test_silent_stream_gets_comments() -> None:
    slow = serving(engine(), sandbox(delay_s=0.2), keep_alive_s=0.05)
    async with slow as served, httpx.AsyncClient() as client:
        body = {"model": "scripted", "input": "6 * 7?", "stream": True, "tools": CODE_TOOL}
        raw = (await client.post(f"{served.url}/v1/responses", json=body)).text
    parts = raw.split("\n\n")
    waits = next(at for at, part in enumerate(parts) if ".interpreting" in part)
    assert parts[waits + 1] == ": keep-alive"


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnect_stores_the_partial_response_as_cancelled(stream: bool) -> None:
    scripted = ScriptedEngine("x" * 10_000, delay_s=0.005)
    async with serving(scripted) as served:
        if stream:
            events = await ask(served, stream=True)
            response_id = (await anext(aiter(events))).response.id
            while (await anext(aiter(events))).type != "response.output_text.delta":
                pass
            await events.response.aclose()
        else:
            with pytest.raises(openai.APITimeoutError):
                await ask(served, timeout=0.5)
        admission = served.app.state.server.admission
        await until(lambda: not scripted.open_streams and not admission.running)
        [left] = await stored_responses(served)
        if stream:
            assert left.id == response_id
        assert left.status == "cancelled"
        assert 0 < len(left.output_text) < 10_000
        assert left.usage.output_tokens == len(left.output_text)


async def stored_responses(served: Served) -> list[Any]:
    """All that the server keeps, once it keeps any."""
    engine = served.app.state.responses.store.engine
    ids: list[str] = []
    while not ids:
        async with engine.connect() as connection:
            ids = list((await connection.execute(select(responses.c.id))).scalars())
        await asyncio.sleep(0.02)
    return [await served.openai.responses.retrieve(response_id) for response_id in ids]


async def test_disconnect_without_store_stores_nothing() -> None:
    scripted = ScriptedEngine("x" * 10_000, delay_s=0.005)
    async with serving(scripted) as served:
        events = await ask(served, stream=True, store=False)
        response_id = (await anext(aiter(events))).response.id
        await events.response.aclose()
        admission = served.app.state.server.admission
        await until(lambda: not scripted.open_streams and not admission.running)
        with pytest.raises(openai.NotFoundError):
            await served.openai.responses.retrieve(response_id)


async def test_rejected_schema_has_the_field_name_of_this_api() -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"contains": {}}}
    async with serving(RefusingEngine(EOS)) as served:
        with pytest.raises(openai.BadRequestError, match="no 'contains'") as caught:
            await ask(served, text={"format": form})
    assert caught.value.param == "text.format"


class BrokenEngine(ScriptedEngine):
    """Fails after a few tokens."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        stream = super().generate(*args, **kwargs)

        async def broken() -> Any:
            for _ in range(3):
                yield await anext(stream)
            await stream.aclose()
            raise EngineError("out of memory")

        return broken()


async def test_engine_error_fails_the_response() -> None:
    async with serving(BrokenEngine("Hello." + EOS)) as served:
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            await ask(served)
        events = await collected(await ask(served, stream=True))
        final = checked(events)
        stored = await served.openai.responses.retrieve(final["id"])
    assert events[-1]["type"] == "response.failed"
    assert final["error"] == {"code": "server_error", "message": "The engine failed: out of memory"}
    assert final["output"][0]["content"][0]["text"] == "Hel"
    assert stored.status == "failed"


async def test_full_queue_is_429_before_the_stream() -> None:
    scripted = ScriptedEngine("x" * 10_000, delay_s=0.005)
    async with serving(scripted, max_concurrent_episodes=1, max_queued_episodes=0) as served:
        first = await ask(served, stream=True)
        await anext(aiter(first))
        for options in ({}, {"stream": True}):
            with pytest.raises(openai.RateLimitError):
                await ask(served, **options)
        await first.response.aclose()


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
    ({"metadata": {"k" * 65: "v"}}, "metadata.k", "invalid_value"),
    ({"truncation": "middle"}, "truncation", "invalid_value"),
    ({"include": [1]}, "include[0]", "invalid_value"),
    ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    (
        {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]},
        "tools[0].container",
        "unsupported_parameter",
    ),
    (
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["f"]}}]},
        "tools[0].container",
        "unsupported_parameter",
    ),
    ({"tools": CODE_TOOL, "tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice", "unsupported_parameter"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "unsupported_parameter"),
    ({"text": {"format": {"type": "json_object"}}}, "text.format", "unsupported_parameter"),
    ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
    ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
    ({"background": True, "store": False}, "background", "invalid_value"),
    ({"extra_body": {"instuctions": "x"}}, "instuctions", "unknown_parameter"),
    (
        {"tools": [{"type": "code_interpreter", "container": {"kind": 1}}]},
        "tools[0].container.kind",
        "unknown_parameter",
    ),
    (
        {"tools": CODE_TOOL, "extra_body": {"deferral": {"max_turns": 99}}},
        "deferral.max_turns",
        "invalid_value",
    ),
    ({"input": []}, "input", "invalid_value"),
    ({"input": "x" * 20_000}, "input", "context_length_exceeded"),
    ({"input": [{"role": "king", "content": "x"}]}, "input[0].role", "invalid_value"),
    ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
    ({"input": [{"role": "user", "contents": "x"}]}, "input[0].contents", "unknown_parameter"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input", "invalid_value"),
    ({"input": [{"type": "input_image", "image_url": "x"}]}, "input[0]", "unsupported_parameter"),
    ({"input": [{"role": "assistant", "content": "x"}], "tools": CODE_TOOL}, "input", "invalid_value"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        "input[0].content[0]",
        "unsupported_parameter",
    ),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input", "invalid_value"),
]


@pytest.mark.parametrize(("options", "param", "code"), BAD, ids=[str(bad[:2]) for bad in BAD])
async def test_unsupported_values_are_rejected_by_name(
    options: dict[str, Any], param: str | None, code: str
) -> None:
    async with serving(engine()) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(served, **options)
    assert caught.value.code == code, caught.value
    assert caught.value.param == param or (param and (caught.value.param or "").startswith(param))
    assert caught.value.type == "invalid_request_error"


async def test_unknown_model_is_404() -> None:
    async with serving(engine()) as served:
        with pytest.raises(openai.NotFoundError) as caught:
            await ask(served, model="gpt-6")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_json_of_a_schema_with_engine_support() -> None:
    scripted = ScriptedEngine('{"n": 42}' + EOS)
    scripted.capabilities = frozenset({"json_schema"})
    form: Any = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}
    async with serving(scripted) as served:
        response = await ask(served, text=form)
    assert json.loads(response.output_text) == {"n": 42}
    assert json.loads(scripted.calls[0][1].json_schema or "") == {"type": "object"}
    assert response.text.format.name == "n"


async def test_truncation_auto_drops_the_oldest_messages() -> None:
    scripted = ScriptedEngine("Hello." + EOS)
    turns: Any = [{"role": "user", "content": f"{number}" + "x" * 3000} for number in range(6)]
    async with serving(scripted) as served:
        response = await ask(served, turns, truncation="auto", instructions="Be brief.")
        with pytest.raises(openai.BadRequestError, match="tokens"):
            await ask(served, turns)
        with pytest.raises(openai.BadRequestError, match="tokens"):
            await ask(served, "x" * 20_000, truncation="auto")
    assert response.truncation == "auto"
    rendered = prompt(scripted)
    assert rendered.startswith("system: Be brief.\nuser: 3x")
    assert "user: 5x" in rendered
