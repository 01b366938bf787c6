from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service.api.files.containers import FROM_OLDER, GONE, Containers
from tests.sandbox.conftest import served
from tests.support.fake_files import PNG, FakeFileSandbox
from tests.support.mcp_server import serve_mcp
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import Served, make_app, serve
from tests.support.until import until

KEYS = ",".join("sha256:" + hashlib.sha256(name).hexdigest() for name in (b"ann", b"bob"))


class Playground:
    """A server around the fake sandbox, and requests whose code the test chooses."""

    def __init__(self, served: Served, engine: ScriptedEngine, sandbox: FakeFileSandbox) -> None:
        self.served = served
        self.client = served.openai
        self.engine = engine
        self.sandbox = sandbox
        self.containers: Containers = served.app.state.containers

    def script(self, code: str, answer: str = "Done.") -> None:
        self.engine._turns[:] = [f"Run\n```python\n{code}\n```<tool_call>", answer + EOS]

    async def respond(
        self, code: str, container: Any = None, answer: str = "Done.", client: Any = None, **options: Any
    ) -> Any:
        self.script(code, answer)
        tool = {"type": "code_interpreter", "container": container or {"type": "auto"}}
        create = (client or self.client).responses.create
        fields = {"model": "scripted", "input": "Go", "tools": [tool], **options}
        return await create(include=["code_interpreter_call.outputs"], **fields)

    async def chat(self, code: str, container: Any, **options: Any) -> Any:
        self.script(code)
        deferral = {"container": container, **options.pop("deferral", {})}
        messages = options.pop("messages", [{"role": "user", "content": "Go"}])
        return await self.client.chat.completions.create(
            model="scripted", messages=messages, extra_body={"deferral": deferral}, **options
        )

    async def upload(self, name: str = "a.csv", content: bytes = b"1,2") -> str:
        return (await self.client.files.create(file=(name, content), purpose="user_data")).id

    def sandbox_id(self) -> str:
        """The id of the only container."""
        [container] = self.containers._live
        return container

    def prompt(self) -> str:
        return self.engine.tokenizer.decode(self.engine.calls[-2][0])


def output(response: Any) -> Any:
    return next(item for item in response.output if item.type == "code_interpreter_call")


def logs(response: Any) -> str:
    return str(output(response).outputs[0].logs)


async def playground(**options: Any) -> AsyncGenerator[Playground, None]:
    engine, sandbox = ScriptedEngine("x"), FakeFileSandbox()
    app = make_app(engine, sandbox, api_keys=KEYS, **options)  # type: ignore[arg-type]
    async with serve(app, "ann") as served:
        yield Playground(served, engine, sandbox)


@pytest.fixture
async def play() -> AsyncGenerator[Playground, None]:
    async for running in playground():
        yield running


async def test_files_reach_the_code_and_the_prompt(play: Playground) -> None:
    file_id = await play.upload("../my däta?.csv", b"1,2")
    other = await play.upload("my däta?.csv", b"3")
    auto = {"type": "auto", "file_ids": [file_id, other, file_id], "memory_limit": "1g"}
    response = await play.respond("print(inputs)", auto)
    assert logs(response) == "{'my_däta_.csv': b'1,2', 'my_däta_-2.csv': b'3'}"
    assert "- /inputs/my_däta_.csv (3 bytes)\n- /inputs/my_däta_-2.csv (1 bytes)" in play.prompt()
    container = await play.client.containers.retrieve(output(response).container_id)
    assert (container.status, container.memory_limit) == ("running", "1g")
    assert play.sandbox.sessions[0].limits.run_limit_s > 0


async def test_code_that_waits_for_the_client_keeps_its_container(play: Playground) -> None:
    weather: Any = {"type": "function", "name": "weather", "allowed_callers": ["programmatic"]}
    code: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
    first = await play.respond("x = 5\ncall('weather')", tools=[code, {**weather, "parameters": None}])
    [call] = [item for item in first.output if item.type == "function_call"]
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    fields: Any = {"model": "scripted", "tools": [code], "include": ["code_interpreter_call.outputs"]}
    container = play.sandbox_id()
    second = await play.client.responses.create(input=[answer], previous_response_id=first.id, **fields)
    assert logs(second) == "rain"
    assert output(second).container_id == container
    third = await play.respond("print(x)", previous_response_id=second.id)
    assert (logs(third), output(third).container_id) == ("5", container)
    assert getattr(third, "notice", None) is None


async def test_outputs_are_cited_and_can_be_downloaded(play: Playground) -> None:
    code = (
        f"work['d/out.txt'] = b'hello'; show('image/png', {PNG!r}); show('text/html', b'<table>')\nprint(1)"
    )
    response = await play.respond(code, answer="See /sandbox/d/out.txt for it.")
    call, message = output(response), response.output[-1]
    logged, image = call.outputs
    assert (logged.logs, logged.tables) == ("1", ["<table>"])
    assert image.type == "image"
    async with httpx.AsyncClient() as client:
        picture = await client.get(image.url, headers={"Authorization": "Bearer ann"})
        assert (picture.content, picture.headers["content-type"]) == (PNG, "image/png")
        assert (await client.get(image.url, headers={"Authorization": "Bearer bob"})).status_code == 404
    text = message.content[0].text
    figure, cited = message.content[0].annotations
    assert cited.type == "container_file_citation"
    assert (cited.filename, text[cited.start_index : cited.end_index]) == ("out.txt", "/sandbox/d/out.txt")
    assert (figure.start_index, figure.end_index) == (len(text), len(text))
    files = play.client.containers.files
    content = await files.content.retrieve(cited.file_id, container_id=cited.container_id)
    assert content.content == b"hello"
    listed = {file.path: file async for file in files.list(cited.container_id)}
    assert listed["/sandbox/d/out.txt"].id == cited.file_id
    assert listed["/sandbox/d/out.txt"].source == "assistant"


async def test_stream_reports_citations_before_the_end_of_the_text(play: Playground) -> None:
    stream = await play.respond("work['a'] = b'1'\nprint(1)", stream=True)
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    cited = kinds.index("response.output_text.annotation.added")
    assert kinds[cited + 1] == "response.output_text.done"
    assert events[cited].annotation.filename == "a"
    assert events[-1].response.output[-1].content[0].annotations[0].filename == "a"


async def test_the_prompt_and_the_observation_stay_the_protocols(play: Playground) -> None:
    await play.respond("work['a'] = b'1'; show('text/html', b'<b>')\nprint(7)")
    assert play.engine.tokenizer.decode(play.engine.calls[-1][0]).endswith(
        "<tool_call>\nCode execution result: 7\n</tool_call>\n"
    )
    assert "/inputs" not in play.prompt()


async def test_conversation_finds_its_variables_and_files(play: Playground) -> None:
    file_id = await play.upload()
    first = await play.respond("x = 41; work['a'] = b'1'", {"type": "auto", "file_ids": [file_id]})
    live = play.sandbox.sessions[0]
    next(iter(play.containers._live.values())).used_at -= 3
    await play.containers.sweep()
    assert live.is_frozen
    second = await play.respond("print(x + 1, list(work), list(inputs))", previous_response_id=first.id)
    assert logs(second) == "42 ['a'] ['a.csv']"
    assert output(second).container_id == output(first).container_id
    assert live.log.count("lease") == 1
    assert not live.is_frozen
    assert "- /inputs/a.csv" in play.prompt()
    assert not hasattr(second, "notice")


@pytest.mark.parametrize("store", [True, False])
async def test_replayed_items_find_the_container_too(play: Playground, store: bool) -> None:
    first = await play.respond("x = 1", store=store)
    items = [{"role": "user", "content": "Go"}, *first.output, {"role": "user", "content": "And?"}]
    second = await play.respond("print(x)", input=items, store=store)
    assert logs(second) == "1"


@pytest.mark.parametrize("by_id", [True, False])
async def test_function_call_between_runs_keeps_the_container(play: Playground, by_id: bool) -> None:
    function: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    tools: Any = [function, {"type": "code_interpreter", "container": {"type": "auto"}}]
    play.engine._turns[:] = [
        "```python\nx = 1\n```<tool_call>",
        "Now <tool_call>",
        '{"name": "f", "arguments": {}}\n</tool_call>' + EOS,
        "```python\nprint(x)\n```<tool_call>",
        "Done." + EOS,
    ]
    question: Any = {"role": "user", "content": "Go"}
    first = await play.client.responses.create(model="scripted", input=[question], tools=tools)
    result: Any = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "7"}
    second = await play.client.responses.create(
        model="scripted",
        input=[result] if by_id else [question, *[item.to_dict() for item in first.output], result],
        previous_response_id=first.id if by_id else None,
        tools=tools,
        include=["code_interpreter_call.outputs"],
    )
    assert logs(second) == "1"
    assert output(second).container_id == output(first).container_id


async def test_branch_from_an_older_response_starts_fresh_and_says_so(play: Playground) -> None:
    file_id = await play.upload()
    first = await play.respond("x = 1", {"type": "auto", "file_ids": [file_id]})
    await play.respond("x = 2", previous_response_id=first.id)
    branch = await play.respond("print('x' in globals(), list(inputs))", previous_response_id=first.id)
    assert logs(branch) == "False ['a.csv']"
    assert branch.notice == FROM_OLDER
    assert output(branch).container_id != output(first).container_id
    assert "The Python session was restarted" in play.prompt()


async def test_response_without_code_does_not_move_the_container(play: Playground) -> None:
    first = await play.respond("x = 1")
    play.engine._turns[:] = ["No code." + EOS]
    tool: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
    second = await play.client.responses.create(
        model="scripted", input="?", previous_response_id=first.id, tools=[tool]
    )
    third = await play.respond("print(x)", previous_response_id=second.id)
    assert logs(third) == "1"


async def test_expired_container_is_a_clear_error_or_starts_fresh(play: Playground) -> None:
    file_id = await play.upload()
    first = await play.respond("x = 1; work['a'] = b'1'", {"type": "auto", "file_ids": [file_id]})
    container_id = output(first).container_id
    await play.containers.end(play.containers._live[container_id], "idle")
    with pytest.raises(openai.BadRequestError) as error:
        await play.respond("print(1)", container_id)
    assert (error.value.code, error.value.param) == ("container_expired", "tools[0].container")
    fresh = await play.respond(
        "print('x' in globals(), list(inputs))",
        container_id,
        extra_body={"deferral": {"on_expired": "fresh"}},
    )
    assert (logs(fresh), fresh.notice) == ("False ['a.csv']", GONE)
    auto = await play.respond("print('x' in globals())", previous_response_id=first.id)
    assert (logs(auto), auto.notice) == ("False", GONE)
    assert (await play.client.containers.retrieve(container_id)).status == "expired"
    cited = first.output[-1].content[0].annotations[0]
    content = await play.client.containers.files.content.retrieve(cited.file_id, container_id=container_id)
    assert content.content == b"1"


async def test_lost_container_is_reported_once_and_replaced_with_its_inputs(play: Playground) -> None:
    file_id = await play.upload()
    response = await play.respond("die()", {"type": "auto", "file_ids": [file_id]})
    assert output(response).status == "failed"
    assert play.containers._live == {}
    play.engine._turns[:] = [
        "Run\n```python\ndie()\n```<tool_call>",
        "Run\n```python\nprint(list(inputs))\n```<tool_call>",
        "Done." + EOS,
    ]
    tool: Any = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": [file_id]}}
    again = await play.client.responses.create(
        model="scripted", input="Go", tools=[tool], include=["code_interpreter_call.outputs"]
    )
    calls = [item for item in again.output if item.type == "code_interpreter_call"]
    assert [call.status for call in calls] == ["failed", "completed"]
    assert calls[1].outputs is not None
    assert calls[1].outputs[0].logs == "['a.csv']"  # type: ignore[union-attr]


async def test_containers_belong_to_their_key(play: Playground) -> None:
    first = await play.respond("work['a'] = b'1'")
    cited = first.output[-1].content[0].annotations[0]
    container_id, bob = cited.container_id, play.client.with_options(api_key="bob")
    for request in (
        bob.containers.retrieve(container_id),
        bob.containers.delete(container_id),
        bob.containers.files.list(container_id),
        bob.containers.files.retrieve(cited.file_id, container_id=container_id),
        bob.containers.files.content.retrieve(cited.file_id, container_id=container_id),
        bob.containers.files.delete(cited.file_id, container_id=container_id),
        bob.containers.files.create(container_id, file=("a", b"1")),
        play.respond("print(1)", container_id, client=bob),
    ):
        with pytest.raises(openai.NotFoundError):
            await request
    assert (await bob.containers.list()).data == []
    mine = await play.upload()
    with pytest.raises(openai.NotFoundError) as error:
        await play.respond("print(1)", {"type": "auto", "file_ids": [mine]}, client=bob)
    assert error.value.param == "tools[0].container.file_ids[0]"


async def test_one_request_at_a_time_holds_a_container() -> None:
    async for play in playground(container_wait_s=0.1):
        first = await play.respond("x = 1")
        container_id = output(first).container_id
        async with play.containers._live[container_id].lock:
            with pytest.raises(openai.ConflictError) as error:
                await play.respond("print(x)", container_id)
        assert error.value.code == "container_busy"
        assert logs(await play.respond("print(x)", container_id)) == "1"


async def test_waiting_branch_of_two_starts_fresh(play: Playground) -> None:
    first = await play.respond("x = 1")
    live = play.containers._live[output(first).container_id]
    async with live.lock:
        waiting = asyncio.create_task(play.respond("print('x' in globals())", previous_response_id=first.id))
        await until(lambda: bool(live.lock._waiters))  # type: ignore[attr-defined]
        await play.containers.update(live, last_response_id="resp_" + "0" * 32)
    second = await waiting
    assert (logs(second), second.notice) == ("False", FROM_OLDER)


async def test_least_recently_used_container_makes_room() -> None:
    async for play in playground(containers_per_key=2):
        ids = [output(await play.respond("print(1)")).container_id for _ in range(3)]
        assert list(play.containers._live) == ids[1:]
        assert len(play.sandbox.alive) == 2
    async for play in playground(parked_memory_mb=1024):
        ids = [output(await play.respond("print(1)")).container_id for _ in range(3)]
        assert list(play.containers._live) == ids[1:]
    async for play in playground(parked_memory_mb=0):
        await play.respond("print(1)")
        assert play.containers._live == {}


async def test_idle_containers_are_frozen_and_expire(play: Playground) -> None:
    first = await play.respond("x = 1")
    live = play.containers._live[output(first).container_id]
    await play.containers.sweep()
    assert not live.is_frozen
    live.used_at -= 3
    await play.containers.sweep()
    assert play.sandbox.sessions[0].is_frozen
    live.used_at -= 20 * 60
    await play.containers.sweep()
    assert play.containers._live == {}
    assert play.sandbox.alive == []


async def test_daily_seconds_of_a_key_are_limited() -> None:
    async for play in playground(key_sandbox_seconds=0.4):
        await play.respond("print(1)")
        await play.respond("print(1)")
        with pytest.raises(openai.RateLimitError) as error:
            await play.respond("print(1)")
        assert error.value.code == "insufficient_quota"
        bob = play.client.with_options(api_key="bob")
        assert logs(await play.respond("print(1)", client=bob)) == "1"


async def test_chat_has_containers_too(play: Playground) -> None:
    part = {"type": "file", "file": {"file_data": "data:text/csv;base64,MSwy", "filename": "t.csv"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Sum"}, part]}]
    first = await play.chat(
        "x = inputs['t.csv']\nwork['o'] = x\nprint(x)", {"type": "auto"}, messages=messages
    )
    message = first.choices[0].message
    [tool] = message.executed_tools
    assert tool["output"] == "b'1,2'"
    assert [(file["path"], file["bytes"]) for file in tool["files"]] == [("/sandbox/o", 3)]
    assert "Sum\n\nFiles that the code can read:\n- /inputs/t.csv (3 bytes)" in play.prompt()
    second = await play.chat("print(x)", message.container)
    assert second.choices[0].message.executed_tools[0]["output"] == "b'1,2'"
    alone = await play.client.chat.completions.create(model="scripted", messages=messages)  # type: ignore[arg-type]
    assert alone.choices[0].message.container.startswith("cntr_")  # type: ignore[attr-defined]


async def test_chat_stream_ends_with_the_container(play: Playground) -> None:
    stream = await play.chat("print(1)", {"type": "auto"}, stream=True)
    last = [chunk async for chunk in stream][-1]
    assert last.choices[0].delta.container.startswith("cntr_")


async def test_chat_without_a_container_keeps_nothing(play: Playground) -> None:
    play.script("print(1)")
    reply = await play.client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "Go"}]
    )
    assert "container" not in reply.choices[0].message.model_dump()
    assert play.containers._live == {}
    assert play.sandbox.alive == []


async def test_input_files_of_a_conversation_stay_available(play: Playground) -> None:
    play.engine._turns[:] = ["I see." + EOS]
    tool: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
    part = {"type": "input_file", "filename": "t.csv", "file_data": base64.b64encode(b"9").decode()}
    question: Any = [{"role": "user", "content": [part, {"type": "input_text", "text": "Look"}]}]
    first = await play.client.responses.create(model="scripted", input=question, tools=[tool])
    items = (await play.client.responses.input_items.list(first.id)).data
    listed = items[0].content[0]  # type: ignore[union-attr]
    assert listed.type == "input_file"
    assert listed.file_id.startswith("file-")  # type: ignore[union-attr]
    second = await play.respond("print(inputs)", previous_response_id=first.id)
    assert logs(second) == "{'t.csv': b'9'}"
    assert [file.id async for file in play.client.files.list()] == []


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_file"}, "input[0].content[0]"),
        ({"type": "input_file", "file_id": "file-x"}, "input[0].content[0].file_id"),
        ({"type": "input_file", "file_data": "%%%"}, "input[0].content[0].file_data"),
        ({"type": "input_file", "file_url": "http://169.254.169.254/"}, "input[0].content[0].file_url"),
        ({"type": "input_file", "file_id": 7}, "input[0].content[0].file_id"),
    ],
)
async def test_rejects_unusable_file_parts(play: Playground, part: Any, param: str) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        await play.respond("print(1)", input=[{"role": "user", "content": [part]}])
    assert error.value.status_code in (400, 404)
    assert error.value.param == param  # type: ignore[attr-defined]
    assert play.sandbox.sessions == []


async def test_files_need_code_execution(play: Playground) -> None:
    part = {"type": "input_file", "file_data": "MQ=="}
    question: Any = [{"role": "user", "content": [part]}]
    with pytest.raises(openai.BadRequestError) as error:
        await play.client.responses.create(model="scripted", input=question)
    assert error.value.param == "input[0].content[0]"
    with pytest.raises(openai.BadRequestError) as error:
        await play.chat("print(1)", {"type": "auto"}, n=2)
    assert error.value.param == "deferral.container"


async def test_containers_api_of_the_sdk(play: Playground) -> None:
    file_id = await play.upload("a.csv", b"1")
    containers = play.client.containers
    made = await containers.create(
        name="mine", file_ids=[file_id], expires_after={"anchor": "last_active_at", "minutes": 5}
    )
    assert (made.name, made.status, made.expires_after.minutes) == ("mine", "running", 5)  # type: ignore[union-attr]
    assert await containers.retrieve(made.id) is not None
    sent = await containers.files.create(made.id, file=("b.txt", b"22"))
    assert (sent.path, sent.bytes, sent.source) == ("/inputs/b.txt", 2, "user")
    same = await containers.files.create(made.id, file_id=file_id)
    assert same.path == "/inputs/a-2.csv"
    assert (
        logs(await play.respond("print(inputs)", made.id))
        == "{'a.csv': b'1', 'b.txt': b'22', 'a-2.csv': b'1'}"
    )
    await containers.files.delete(sent.id, container_id=made.id)
    assert logs(await play.respond("print(list(inputs))", made.id)) == "['a.csv', 'a-2.csv']"
    assert (await containers.files.content.retrieve(same.id, container_id=made.id)).content == b"1"
    other = await containers.create(name="other")
    assert [item.id async for item in containers.list()] == [other.id, made.id]
    assert [item.id async for item in containers.list(name="mine")] == [made.id]
    await containers.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await containers.retrieve(made.id)
    assert len(play.sandbox.alive) == 1


async def test_figures_are_svg_on_request(play: Playground) -> None:
    reply = await play.chat("print(1)", {"type": "auto"}, deferral={"figures": "svg"})
    assert play.sandbox.sessions[0].limits.figures == "svg"
    await play.chat("print(1)", reply.choices[0].message.container)
    assert play.sandbox.sessions[0].limits.figures == "png"


async def test_skipped_entries_are_reported(play: Playground) -> None:
    reply = await play.chat("skip('link', 'symlink')\nprint(1)", {"type": "auto"})
    [tool] = reply.choices[0].message.executed_tools
    assert tool["skipped_files"] == [{"path": "link", "reason": "symlink"}]


@pytest.mark.parametrize("through_runner", [False, True])
async def test_files_above_the_quota_of_the_key_are_skipped(tmp_path: Path, through_runner: bool) -> None:
    engine, files = ScriptedEngine("x"), FakeFileSandbox()
    async with contextlib.AsyncExitStack() as stack:
        sandbox: Any = files
        if through_runner:
            sandbox = (await stack.enter_async_context(served(files, f"unix:{tmp_path}/r.sock"))).client
        app = make_app(engine, sandbox, api_keys=KEYS, key_files_bytes=2000)
        play = Playground(await stack.enter_async_context(serve(app, "ann")), engine, files)
        reply = await play.chat("x = 5; work['a'] = b'1' * 1500; work['b'] = b'1' * 1500", {"type": "auto"})
        message = reply.choices[0].message
        [tool] = message.executed_tools
        assert [file["path"] for file in tool["files"]] == ["/sandbox/a"]
        assert tool["skipped_files"] == [{"path": "b", "reason": "quota"}]
        again = await play.chat("print(x)", message.container)
        assert again.choices[0].message.executed_tools[0]["output"] == "5"


async def test_failed_flush_returns_no_files(play: Playground) -> None:
    reply = await play.chat("work['a'] = b'1'\n1/0", {"type": "auto"})
    [tool] = reply.choices[0].message.executed_tools
    assert tool["status"] == "error"
    assert "files" not in tool


async def test_full_sandbox_is_an_error_of_the_request(play: Playground) -> None:
    play.sandbox.is_full = True
    with pytest.raises(openai.InternalServerError) as error:
        await play.client.containers.create(name="x")
    assert error.value.code == "sandbox_unavailable"
    reply = await play.chat("print(1)", {"type": "auto"})
    assert reply.choices[0].message.executed_tools[0]["status"] == "sandbox_error"
    assert play.containers._live == {}


async def test_background_responses_hold_and_release_their_container(play: Playground) -> None:
    response = await play.respond("x = 3", background=True)
    while response.status in ("queued", "in_progress"):
        await asyncio.sleep(0.02)
        response = await play.client.responses.retrieve(response.id)
    second = await play.respond("print(x)", previous_response_id=response.id)
    assert logs(second) == "3"
    assert not any(live.lock.locked() for live in play.containers._live.values())


async def test_code_in_a_container_calls_tools() -> None:
    async with serve_mcp() as mcp:
        async for play in playground(mcp_private_hosts=mcp.host):
            server = {
                "type": "mcp",
                "server_label": "demo",
                "server_url": mcp.url,
                "require_approval": "never",
            }
            code = {"type": "code_interpreter", "container": {"type": "auto"}}
            first = await play.respond("work['f'] = b'1'; call('add', a=2, b=3)", tools=[code, server])
            assert logs(first) == "5"
            assert [item.type for item in first.output] == [
                *("mcp_list_tools", "message", "code_interpreter_call", "mcp_call", "message")
            ]
            assert "from tools import" in play.prompt()
            second = await play.respond("print(work['f'])", previous_response_id=first.id)
            assert logs(second) == "b'1'"
            assert output(second).container_id == output(first).container_id
            assert play.sandbox.sessions[0].tools is None
            reply = await play.chat("call('add', a=1, b=1)", {"type": "auto"}, tools=[server])
            assert reply.choices[0].message.executed_tools[0]["calls"][0]["output"] == 2
            assert mcp.log == ["add 2 3", "add 1 1"]


async def test_containers_whose_records_were_deleted_are_ended(play: Playground) -> None:
    for _ in range(2):
        await play.respond("print(1)")
    kept, deleted = play.containers._live
    await play.containers.store.delete(deleted)
    await play.containers.end_deleted()
    assert list(play.containers._live) == [kept]
    assert len(play.sandbox.alive) == 1
