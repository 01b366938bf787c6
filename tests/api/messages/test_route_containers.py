"""Containers, files and MCP servers in Messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import anthropic
import pytest

from tests.support.fake_files import FakeFileSandbox
from tests.support.mcp_server import serve_mcp
from tests.support.messages_api import CODE_TOOL, ask, serving, streamed
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import Served
from tests.support.tool_sandbox import ToolSandbox


def turns(code: str) -> list[str]:
    return [f"Run\n```python\n{code}\n```<tool_call>", "Done." + EOS]


class Api:
    """A server around the fake sandbox, its official client, and requests whose code the test chooses."""

    def __init__(self, served: Served, client: anthropic.AsyncAnthropic, engine: ScriptedEngine) -> None:
        self.served, self.client, self.engine = served, client, engine

    async def ask(self, code: str, content: Any = "Go", **options: Any) -> Any:
        self.engine._turns[:] = turns(code)
        messages = [{"role": "user", "content": content}]
        return await ask(self.client, messages, tools=CODE_TOOL, **options)

    def prompt(self) -> str:
        return self.engine.tokenizer.decode(self.engine.calls[-2][0])


@pytest.fixture
async def api() -> AsyncGenerator[Api, None]:
    engine = ScriptedEngine("x")
    async with serving(engine, FakeFileSandbox()) as (served, client):  # type: ignore[arg-type]
        yield Api(served, client, engine)


def result(message: Any) -> Any:
    return next(block for block in message.content if block.type == "code_execution_tool_result").content


async def test_a_container_continues_by_its_id(api: Api) -> None:
    first = await api.ask("work['a.txt'] = b'hello'\nprint(1)")
    assert first.container.id.startswith("cntr_")
    assert first.container.expires_at.tzinfo is not None
    second = await api.ask("print(work['a.txt'])", container=first.container.id)
    assert second.container.id == first.container.id
    assert result(second).stdout == "b'hello'"
    third = await api.ask("print(len(work))", container={"id": first.container.id})
    assert result(third).stdout == "1"
    other = await api.ask("print(len(work))")
    assert (other.container.id != first.container.id, result(other).stdout) == (True, "0")


async def test_outputs_can_be_downloaded(api: Api) -> None:
    message = await api.ask("work['a.txt'] = b'hello'\nprint(1)")
    [file] = result(message).content
    assert file.type == "code_execution_output"
    content = await api.client.beta.files.download(file.file_id)
    assert await content.read() == b"hello"


async def test_files_in_anthropics_form(api: Api) -> None:
    files = api.client.beta.files
    file = await files.upload(file=("a.csv", b"1,2"))
    assert (file.type, file.filename, file.mime_type, file.size_bytes) == ("file", "a.csv", "text/csv", 3)
    assert file.created_at.tzinfo is not None
    other = await files.upload(file=("b", b""))
    assert [one.id async for one in files.list(limit=1)] == [other.id, file.id]
    assert await files.retrieve_metadata(file.id) == file
    assert (await files.delete(file.id)).type == "file_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await files.retrieve_metadata(file.id)


async def test_uploads_reach_the_code_and_the_prompt(api: Api) -> None:
    file = await api.client.beta.files.upload(file=("a.csv", b"1,2"))
    upload = {"type": "container_upload", "file_id": file.id}
    message = await api.ask("print(inputs)", [{"type": "text", "text": "Sum?"}, upload])
    assert result(message).stdout == "{'a.csv': b'1,2'}"
    assert "- /inputs/a.csv (3 bytes)" in api.prompt()


async def test_stream_reports_the_container(api: Api) -> None:
    api.engine._turns[:] = turns("print(1)")
    events = await streamed(api.client, tools=CODE_TOOL)
    [delta] = [event["delta"] for event in events if event["type"] == "message_delta"]
    assert delta["container"]["id"].startswith("cntr_")


async def test_a_reply_without_code_has_no_container(api: Api) -> None:
    api.engine._turns[:] = ["Hi." + EOS]
    message = await ask(api.client, tools=CODE_TOOL)
    assert message.container is None


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"container": "cntr_1"}, 404, "container"),
        ({"container": {"id": "cntr_1", "skills": [{"type": "custom"}]}}, 400, "container.skills"),
        (
            {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "file-1"}]}]},
            404,
            "messages[0].content[0].file_id",
        ),
    ],
)
async def test_errors_name_their_field(api: Api, change: Any, status: int, param: str) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        await ask(api.client, **{"tools": CODE_TOOL, **change})
    body: Any = caught.value.body
    assert (caught.value.status_code, body["error"]["param"]) == (status, param), body


async def test_files_need_code_execution(api: Api) -> None:
    upload = [{"role": "user", "content": [{"type": "container_upload", "file_id": "file-1"}]}]
    with pytest.raises(anthropic.BadRequestError, match="no code_execution"):
        await ask(api.client, upload)


@pytest.mark.parametrize(
    "change",
    [
        {"mcp_servers": [{"tool_configuration": {"allowed_tools": ["add"]}}]},
        {
            "mcp_servers": [{}],
            "tools": [
                {
                    "type": "mcp_toolset",
                    "mcp_server_name": "demo",
                    "default_config": {"enabled": False},
                    "configs": {"add": {"enabled": True}, "note": {"enabled": False}},
                }
            ],
        },
    ],
)
async def test_code_calls_an_mcp_server(change: Any) -> None:
    engine = ScriptedEngine(*turns('call add {"a": 2, "b": 3}'))
    async with serve_mcp() as mcp, serving(engine, ToolSandbox(), mcp_private_hosts=mcp.host) as (_, client):  # type: ignore[arg-type]
        entry = {"type": "url", "name": "demo", "url": mcp.url, "authorization_token": "secret"}
        servers = [{**entry, **server} for server in change["mcp_servers"]]
        tools = [*CODE_TOOL, *change.get("tools", ())]
        body: Any = {"model": "scripted", "messages": [{"role": "user", "content": "5?"}]}
        counted = await client.messages.count_tokens(**body, tools=tools, extra_body={"mcp_servers": servers})
        message = await ask(client, body["messages"], tools=tools, extra_body={"mcp_servers": servers})
    assert result(message).stdout == "5"
    assert mcp.log == ["add 2 3"]
    prompt = engine.tokenizer.decode(engine.calls[0][0])
    assert "def add(" in prompt
    assert "def note(" not in prompt
    assert counted.input_tokens == message.usage.input_tokens


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"mcp_servers": [{"name": "x", "url": "http://127.0.0.1:1/mcp"}]}, "tools"),
        (
            {"mcp_servers": [{"name": "x", "url": "https://x", "authorization_token": "\n"}]},
            "mcp_servers[0].authorization_token",
        ),
        ({"mcp_servers": 2 * [{"name": "x", "url": "https://x"}]}, "mcp_servers"),
        ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]}, "tools[0].mcp_server_name"),
        (
            {
                "mcp_servers": [{"name": "x", "url": "https://x"}],
                "tools": [
                    {"type": "mcp_toolset", "mcp_server_name": "x", "configs": {"f": {"enabled": False}}}
                ],
            },
            "tools[0].configs.f.enabled",
        ),
    ],
)
async def test_mcp_errors(change: Any, param: str) -> None:
    tools = [*change.pop("tools", ()), *CODE_TOOL]
    async with serving(ScriptedEngine("x")) as (_, client):
        with pytest.raises(anthropic.BadRequestError) as caught:
            await ask(client, tools=tools, extra_body=change)
    body: Any = caught.value.body
    assert body["error"]["param"] == param, body
