"""Approval of calls of MCP tools by code, during streams and between requests, with a scripted sandbox."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.support.mcp_server import McpServed, serve_mcp
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import Served, make_app, serve
from tests.support.tool_sandbox import ToolSandbox

BLOCK = '```python\ncall note {"text": "hi"}\n```\n'
WRITES_ON = f"See.\n{BLOCK}{'While that waits, I write. ' * 4}<tool_call>"
NOW = f"See.\n{BLOCK}<tool_call>"
DROPPED = f"See.\n{BLOCK}No code is needed: \\boxed{{1}}.{EOS}"
ANSWER = f"So \\boxed{{2}}.{EOS}"
OUTPUTS: Any = ["code_interpreter_call.outputs"]
KEYS = ",".join("sha256:" + hashlib.sha256(name).hexdigest() for name in (b"ann", b"bob"))


@pytest.fixture
async def mcp() -> AsyncGenerator[McpServed]:
    async with serve_mcp() as served:
        yield served


class Approving:
    """A server with gated tools."""

    def __init__(self, served: Served, mcp: McpServed, engine: ScriptedEngine) -> None:
        self.client, self.url, self.app = served.openai, served.url, served.app
        self.mcp, self.engine = mcp, engine

    def tool(self, **more: Any) -> Any:
        fields = {"type": "mcp", "server_label": "demo", "server_url": self.mcp.url}
        return {**fields, "require_approval": "always", **more}

    async def respond(self, items: Any = "Note it.", **more: Any) -> Any:
        fields = {"model": "scripted", "tools": [self.tool()], "include": OUTPUTS, **more}
        return await self.client.responses.create(input=items, **fields)

    async def decide(self, reply_id: str, request_id: str, approve: bool, **more: Any) -> httpx.Response:
        path = "responses" if reply_id.startswith("resp") else "chat/completions"
        body = {"approval_request_id": request_id, "approve": approve, **more.pop("body", {})}
        headers = {"Authorization": f"Bearer {more.pop('key', 'none')}"}
        async with httpx.AsyncClient(verify=False) as client:
            return await client.post(f"{self.url}/v1/{path}/{reply_id}/approvals", json=body, headers=headers)


@asynccontextmanager
async def serving(
    mcp: McpServed, *turns: str, delay_s: float = 0.0, key: str = "none", **options: Any
) -> AsyncGenerator[Approving]:
    engine = ScriptedEngine(*turns, delay_s=delay_s)
    app = make_app(engine, ToolSandbox(), mcp_private_hosts=mcp.host, **options)
    async with serve(app, key) as served:
        yield Approving(served, mcp, engine)


def of_type(response: Any, kind: str) -> Any:
    return next(item for item in response.output if item.type == kind)


def decision(response: Any, approve: bool, **more: Any) -> Any:
    request = of_type(response, "mcp_approval_request")
    answer = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": approve}
    return [{**answer, **more}]


@pytest.mark.parametrize("approve", [True, False])
async def test_decided_while_the_model_writes(mcp: McpServed, approve: bool) -> None:
    async with serving(mcp, WRITES_ON, ANSWER, delay_s=0.01) as server:
        events: list[Any] = []
        text_after = ""
        response_id = asked = ""
        async for event in await server.respond(stream=True):
            events.append(event)
            if event.type == "response.created":
                response_id = event.response.id
            if event.type == "response.output_item.done" and event.item.type == "mcp_approval_request":
                asked = event.item.id
                assert (event.item.name, json.loads(event.item.arguments)) == ("note", {"text": "hi"})
                done = await server.decide(
                    response_id, asked, approve, body={} if approve else {"reason": "not now"}
                )
                assert (done.status_code, done.json()["status"]) == (200, "approved" if approve else "denied")
                assert mcp.log == []
            if asked and event.type == "response.output_text.delta":
                text_after += event.delta
        assert "I write." in text_after
        assert [event.sequence_number for event in events] == list(range(len(events)))
        response = events[-1].response
        code = of_type(response, "code_interpreter_call")
        if approve:
            assert mcp.log == ["note hi"]
            assert of_type(response, "mcp_call").approval_request_id == asked
        else:
            assert mcp.log == []
            assert code.outputs[0].logs.startswith("tools.ToolDeniedError: note() was denied: not now")
        assert response.final_answer == "2"
        [decided] = [event for event in body_events(events) if event["type"].endswith("request.decided")]
        assert (decided["item_id"], decided["approve"], decided["decided_by"]) == (asked, approve, "client")
        assert response.status == "completed"


def body_events(events: list[Any]) -> list[dict[str, Any]]:
    return [event.to_dict() for event in events]


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("approve", [True, False])
async def test_decided_between_two_responses(mcp: McpServed, approve: bool, stored: bool) -> None:
    async with serving(mcp, NOW, ANSWER, f"Bye.{EOS}") as server:
        first = await server.respond()
        kinds = [item.type for item in first.output]
        assert kinds == ["mcp_list_tools", "message", "code_interpreter_call", "mcp_approval_request"]
        assert of_type(first, "code_interpreter_call").status == "interpreting"
        assert mcp.log == []
        start: list[Any] = [{"role": "user", "content": "Note it."}]
        start += [item.model_dump(exclude_none=True) for item in first.output]
        answers = decision(first, approve)
        if stored:
            second = await server.respond(answers, previous_response_id=first.id)
        else:
            second = await server.respond([*start, *answers])
        assert mcp.log == (["note hi"] if approve else [])
        logs = of_type(second, "code_interpreter_call").outputs[0].logs
        assert ("ToolDeniedError" in logs) is not approve
        assert second.final_answer == "2"
        if stored:
            await server.respond("Sure?", previous_response_id=second.id)
        else:
            output = [item.model_dump(exclude_none=True) for item in second.output]
            await server.respond([*start, *answers, *output, {"role": "user", "content": "Sure?"}])
        prompt = server.engine.tokenizer.decode(server.engine.calls[-1][0])
        assert f"{NOW}\nCode execution result: {logs}" in prompt
        assert "mcpr_" not in prompt


async def test_undecided_approval_must_be_answered_to_continue(mcp: McpServed) -> None:
    async with serving(mcp, NOW, ANSWER) as server:
        first = await server.respond()
        with pytest.raises(openai.BadRequestError, match="waits for outputs"):
            await server.respond("And?", previous_response_id=first.id)
        [answer] = decision(first, True)
        with pytest.raises(openai.BadRequestError, match="these are missing: mcpr_"):
            await server.respond([{**answer, "approval_request_id": "mcpr_x"}], previous_response_id=first.id)
        assert (await server.decide(first.id, answer["approval_request_id"], True)).status_code == 200
        again = await server.decide(first.id, answer["approval_request_id"], False)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "approval_decided")
        await server.respond([{**answer, "approve": False}], previous_response_id=first.id)
        assert mcp.log == ["note hi"]  # the first decision counts


async def test_block_that_is_never_flushed_calls_nothing(mcp: McpServed) -> None:
    async with serving(mcp, DROPPED, delay_s=0.005) as server:
        response_id = asked = ""
        async for event in await server.respond(stream=True):
            if event.type == "response.created":
                response_id = event.response.id
            if event.type == "response.output_item.done" and event.item.type == "mcp_approval_request":
                asked = event.item.id
                assert (await server.decide(response_id, asked, True)).status_code == 200
        assert asked
        assert mcp.log == []
        gone = await server.decide(response_id, asked, True)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "approval_not_found")


async def test_nobody_decides_in_time(mcp: McpServed) -> None:
    async with serving(mcp, WRITES_ON, ANSWER, delay_s=0.01, approval_timeout_s=0.2) as server:
        events = [event async for event in await server.respond(stream=True)]
        logs = of_type(events[-1].response, "code_interpreter_call").outputs[0].logs
        assert "ToolDeniedError: note() was not approved within 0.2 seconds" in logs
        [decided] = [event for event in body_events(events) if event["type"].endswith("request.decided")]
        assert decided["decided_by"] == "timeout"
        assert mcp.log == []


async def test_only_the_owner_decides(mcp: McpServed) -> None:
    async with serving(mcp, NOW, ANSWER, key="ann", api_keys=KEYS) as server:
        first = await server.respond()
        [answer] = decision(first, True)
        assert (
            await server.decide(first.id, answer["approval_request_id"], True, key="bob")
        ).status_code == 404
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="bob", max_retries=0) as bob:
            with pytest.raises(openai.ConflictError):
                await bob.responses.create(model="scripted", input=[answer], tools=[server.tool()])
        assert mcp.log == []
        await server.respond([answer], previous_response_id=first.id)
        assert mcp.log == ["note hi"]


@pytest.mark.parametrize(
    ("require_approval", "asks"),
    [
        ("never", False),
        (None, True),
        ({"never": {"tool_names": ["note"]}}, False),
        ({"never": {"tool_names": ["add"]}}, True),
        ({"always": {"tool_names": ["note"]}}, True),
        ({"always": {"tool_names": ["note"]}, "never": {"tool_names": ["note"]}}, True),
    ],
)
async def test_request_chooses_the_tools_that_need_approval(
    mcp: McpServed, require_approval: Any, asks: bool
) -> None:
    async with serving(mcp, NOW, ANSWER) as server:
        response = await server.respond(tools=[server.tool(require_approval=require_approval)])
        assert ("mcp_approval_request" in [item.type for item in response.output]) is asks
        shown = response.tools[0].to_dict()["require_approval"]
        assert shown == (require_approval or "always")
        assert mcp.log == ([] if asks else ["note hi"])


async def test_invalid_arguments_need_no_approval(mcp: McpServed) -> None:
    turn = 'See.\n```python\ncall note {"words": 1}\n```<tool_call>'
    async with serving(mcp, turn, ANSWER) as server:
        response = await server.respond()
        assert "tools.ToolError" in of_type(response, "code_interpreter_call").outputs[0].logs


@pytest.mark.parametrize("writes_on", [True, False])
async def test_chat_stream_waits_for_the_decision(mcp: McpServed, writes_on: bool) -> None:
    async with serving(mcp, WRITES_ON if writes_on else NOW, ANSWER, delay_s=0.002) as server:
        statuses, text = [], ""
        stream: Any = await server.client.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "Note it."}],
            tools=[server.tool()],
            stream=True,
        )
        deciding: asyncio.Task[httpx.Response] | None = None
        async for chunk in stream:
            [choice] = chunk.choices
            for request in getattr(choice.delta, "approval_requests", None) or ():
                statuses.append(request["status"])
                if request["status"] == "open":
                    assert (request["server_label"], request["arguments"]) == ("demo", {"text": "hi"})
                    deciding = asyncio.create_task(server.decide(chunk.id, request["id"], True))
            text += choice.delta.content or ""
        assert deciding is not None
        assert (await deciding).status_code == 200
        assert statuses == ["open", "approved"]
        assert mcp.log == ["note hi"]
        assert text.endswith("So \\boxed{2}.")


async def test_chat_without_a_stream_is_rejected(mcp: McpServed) -> None:
    async with serving(mcp, NOW, ANSWER) as server:
        with pytest.raises(openai.BadRequestError, match="needs 'stream': true"):
            await server.client.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "Hi"}], tools=[server.tool()]
            )


async def test_client_that_disconnects_makes_no_call(mcp: McpServed) -> None:
    async with serving(mcp, NOW, ANSWER) as server:
        stream: Any = await server.client.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "Note it."}],
            tools=[server.tool()],
            stream=True,
        )
        async for chunk in stream:
            if getattr(chunk.choices[0].delta, "approval_requests", None):
                break
        await stream.close()
        await asyncio.sleep(0.2)
        assert mcp.log == []
