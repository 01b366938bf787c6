"""Tools of MCP servers in both APIs, with a scripted model and a sandbox that only calls tools."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any

import openai
import pytest

from tests.support.mcp_server import McpServed, serve_mcp
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import Served, make_app, serve
from tests.support.tool_sandbox import ToolSandbox

TURN = "Let me see.\n```python\n{}\n```<tool_call>"
ADD = TURN.format('call add {"a": 2, "b": 3}')
ANSWER = "So \\boxed{5}." + EOS


@pytest.fixture
async def mcp() -> AsyncGenerator[McpServed]:
    async with serve_mcp() as served:
        yield served


def serving(
    mcp: McpServed, *turns: str, delay_s: float = 0.0, **options: Any
) -> AbstractAsyncContextManager[Served]:
    engine = ScriptedEngine(*turns, delay_s=delay_s)
    options = {"mcp_private_hosts": mcp.host, **options}
    app = make_app(engine, ToolSandbox(), **options)
    app.state.engine = engine
    return serve(app)


def tool(mcp: McpServed, **more: Any) -> Any:
    return {
        "type": "mcp",
        "server_label": "demo",
        "server_url": mcp.url,
        "require_approval": "never",
        **more,
    }


async def respond(served: Served, *tools: Any, **more: Any) -> Any:
    return await served.openai.responses.create(
        model="scripted", input="2 + 3?", tools=list(tools), include=["code_interpreter_call.outputs"], **more
    )


async def test_a_response_lists_and_calls_the_tools(mcp: McpServed) -> None:
    async with serving(mcp, ADD, ANSWER) as served:
        response = await respond(served, tool(mcp))
        assert [item.type for item in response.output] == [
            *("mcp_list_tools", "message", "code_interpreter_call", "mcp_call", "message")
        ]
        listed, _, code, call, _ = response.output
        assert [entry.name for entry in listed.tools] == ["add", "note", "odd-name", "slow", "text"]
        assert listed.tools[0].input_schema["required"] == ["a"]
        assert (call.server_label, call.name, call.status, call.error) == ("demo", "add", "completed", None)
        assert (json.loads(call.arguments), call.output) == ({"a": 2, "b": 3}, "5")
        assert code.outputs[0].logs == "5"
        assert response.final_answer == "5"
        assert mcp.log == ["add 2 3"]


async def test_the_prompt_lists_the_functions_as_plain_text(mcp: McpServed) -> None:
    async with serving(mcp, ADD, ANSWER) as served:
        await respond(served, tool(mcp, allowed_tools=["add", "odd-name"]))
        engine = served.app.state.engine
        prompt = engine.tokenizer.decode(engine.calls[0][0])
        assert "after `from tools import add, odd_name`" in prompt
        assert 'def add(a: int, b: int = 1) -> int:\n    """Add two numbers."""' in prompt
        assert "def odd_name(values: list[int]) -> dict[str, int]:" in prompt
        assert "def note" not in prompt


async def test_streamed_events_have_openais_names(mcp: McpServed) -> None:
    async with serving(mcp, ADD, ANSWER) as served:
        events = [event async for event in await respond(served, tool(mcp, read_only=True), stream=True)]
        kinds = [event.type for event in events if "mcp" in event.type]
        assert kinds == [
            "response.mcp_list_tools.in_progress",
            "response.mcp_list_tools.completed",
            "response.mcp_call.in_progress",
            "response.mcp_call_arguments.delta",
            "response.mcp_call_arguments.done",
            "response.mcp_call.completed",
        ]
        numbers = [event.sequence_number for event in events]
        assert numbers == sorted(numbers)
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.id for item in done if item.type == "mcp_call"] == [
            item.id for item in events[-1].response.output if item.type == "mcp_call"
        ]


async def test_chat_lists_the_calls_of_a_flush(mcp: McpServed) -> None:
    code = 'call add {"a": 2}\ncall note {"text": "hi"}\ncall add {"a": "x"}'
    turn = TURN.format(code).replace("<tool_call>", "I keep writing, so a call can be made.<tool_call>")
    async with serving(mcp, turn, ANSWER, delay_s=0.01) as served:
        reply = await served.openai.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "2 + 3?"}],
            tools=[tool(mcp, read_only=["add"])],
        )
        message: Any = reply.choices[0].message
        [executed] = message.executed_tools
        calls = executed["calls"]
        assert [(call["name"], call["status"], call["read_only"]) for call in calls] == [
            ("add", "ok", True),
            ("note", "ok", False),
            ("add", "error", True),
        ]
        assert calls[0]["output"] == 3
        assert calls[2]["error"] == 'add(): "x" is not of type "integer" at ["a"]'
        assert calls[0]["started_at"] <= executed["flushed_at"] <= calls[1]["started_at"]
        # A failed flush lists what it does not undo.
        assert executed["output"] == (
            'tools.ToolError: add(): "x" is not of type "integer" at ["a"]\n'
            "Variables were restored, but these calls took effect: note(text='hi')"
        )
        assert mcp.log == ["add 2 1", "note hi"]


async def test_a_second_turn_gets_the_reply_as_it_was_sampled(mcp: McpServed) -> None:
    async with serving(mcp, ADD, ANSWER) as served:
        first = await respond(served, tool(mcp))
        items = [item.model_dump(exclude_none=True) for item in first.output]
        again = [{"role": "user", "content": "2 + 3?"}, *items, {"role": "user", "content": "Sure?"}]
        for more in ({"input": again}, {"input": "Sure?", "previous_response_id": first.id}):
            await served.openai.responses.create(model="scripted", tools=[tool(mcp)], **more)
            engine = served.app.state.engine
            prompt = engine.tokenizer.decode(engine.calls[-1][0])
            assert "<tool_call>\nCode execution result: 5\n</tool_call>\nSo \\boxed{5}." in prompt


async def test_credentials_are_passed_on_and_shown_nowhere(
    mcp: McpServed, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(mcp, ADD, ANSWER) as served:
        given = tool(mcp, authorization="s3cret", headers={"X-Team": "t3am"})
        response = await respond(served, given)
        shown = await served.openai.responses.retrieve(response.id)
        events = [event.model_dump_json() for event in [shown, response]]
        assert mcp.headers
        for headers in mcp.headers:
            assert (headers["authorization"], headers["x-team"]) == ("Bearer s3cret", "t3am")
    captured = capsys.readouterr()
    for text in (*events, caplog.text, captured.out, captured.err):
        assert "s3cret" not in text
        assert "t3am" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"require_approval": "sometimes"}, "require_approval"),
        ({"require_approval": {"never": {"tool_names": ["add"], "other": 1}}}, "require_approval"),
        ({"server_url": "https://mcp.example.com/mcp"}, "does not allow connections to 'mcp.example.com'"),
        ({"server_url": "ftp://127.0.0.1/x"}, "not a URL of the form"),
        ({"server_url": None}, "has no MCP server 'demo'"),
        ({"headers": {"Host": "x"}}, "can't be set"),
        ({"headers": {"X": "a\r\nY: b"}}, "not a valid header"),
        ({"authorization": "a", "headers": {"authorization": "b"}}, "contains it as well"),
        ({"connector_id": "connector_dropbox"}, "does not support"),
    ],
)
async def test_rejects_what_it_can_not_do(mcp: McpServed, change: dict[str, Any], message: str) -> None:
    async with serving(mcp, ADD, ANSWER) as served:
        with pytest.raises(openai.BadRequestError, match=message) as error:
            await respond(served, tool(mcp, **change))
        assert str(error.value.param).startswith("tools")
        assert mcp.headers == []


async def test_servers_in_requests_are_rejected_by_default(mcp: McpServed) -> None:
    async with serving(mcp, ADD, ANSWER, mcp_private_hosts="") as served:
        with pytest.raises(openai.BadRequestError, match="does not allow connections"):
            await respond(served, tool(mcp))
    async with serving(mcp, ADD, ANSWER, mcp_private_hosts="", mcp_allowed_hosts="*") as served:
        for url in (mcp.url, mcp.url.replace("http:", "https:"), "https://localhost/mcp"):
            with pytest.raises(openai.APIStatusError, match=r"https://|not public"):
                await respond(served, tool(mcp, server_url=url))
    assert mcp.headers == []


async def test_an_unreachable_server_is_a_failed_dependency(mcp: McpServed) -> None:
    async with serving(mcp, ADD, ANSWER, mcp_private_hosts="127.0.0.1") as served:
        with pytest.raises(
            openai.APIStatusError, match="Error retrieving tool list from MCP server: 'demo'"
        ) as error:
            await respond(served, tool(mcp, server_url="http://127.0.0.1:9/mcp"))
        assert error.value.status_code == 424


async def test_servers_of_the_operator_are_named_by_label(mcp: McpServed, tmp_path: Any) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(
        json.dumps(
            {
                "mcpServers": {
                    "own": {"url": mcp.url, "allowedTools": ["add"], "readOnly": ["add"], "always": True}
                }
            }
        )
    )
    options = {"mcp_servers_file": str(file), "mcp_private_hosts": ""}
    async with serving(mcp, ADD, ANSWER, ADD, ANSWER, **options) as served:
        named = {"type": "mcp", "server_label": "own", "require_approval": "never"}
        for tools in ([named], [{"type": "code_interpreter", "container": {"type": "auto"}}]):
            response = await respond(served, *tools)
            call = next(item for item in response.output if item.type == "mcp_call")
            assert (call.server_label, call.output) == ("own", "5")
    async with serving(mcp, ADD, ANSWER, **options) as served:
        chat: Any = await served.openai.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "2 + 3?"}]
        )
    assert chat.choices[0].message.executed_tools[0]["calls"][0]["output"] == 5
    assert mcp.log == ["add 2 3"] * 3


async def test_without_tools_the_prompt_is_unchanged(mcp: McpServed) -> None:
    prompts = []
    for options in ({}, {"mcp_private_hosts": ""}):
        async with serving(mcp, ANSWER, **options) as served:
            await served.openai.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "2 + 3?"}]
            )
            prompts.append(served.app.state.engine.calls[0][0])
    assert prompts[0] == prompts[1]
    assert "tools" not in served.app.state.engine.tokenizer.decode(prompts[0])
