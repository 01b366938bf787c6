from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from service.cli.conversation import ChatError, ChatView, Client, Recorder, converse
from service.cli.timeline import Span
from tests.support.mcp_server import serve_mcp
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve
from tests.support.tool_sandbox import ToolSandbox

ASK = "Let\n```python\nx = 6 * 7\n```\nand\n```python\nprint(x)\n```<tool_call>"


async def test_shows_text_calls_and_timeline() -> None:
    engine = ScriptedEngine(ASK, f"It is \\boxed{{42}}.{EOS}")
    out = io.StringIO()
    async with serve(make_app(engine, ScriptedSandbox(lambda blocks: printed("42"), 0.02))) as served:
        await asyncio.to_thread(
            converse,
            served.url,
            question="6 * 7?",
            model=None,
            api_key=None,
            eager=True,
            console=Console(file=out, width=100),
        )
    shown = out.getvalue()
    for part in ("x = 6 * 7", "○ 1 block pending", "○ 2 blocks pending", "◔ 2 blocks running"):
        assert part in shown
    assert "● 2 blocks ok: ran 200 ms (200 hidden), waited " in shown
    assert "◔ 2 blocks running\n    42\n  ● 2 blocks ok" in shown
    assert "Code execution result: 42" in shown
    assert shown.startswith("This is the demo model")
    assert "\nwrites" in shown
    assert "\nwaits" in shown


def test_live_output_is_indented_and_safe() -> None:
    out = io.StringIO()
    view = ChatView(Console(file=out, width=100))

    def show(text: str, stream: str = "stdout", attempt: int = 1, truncated: bool = False) -> None:
        view.show({"text": text, "stream": stream, "attempt": attempt, "truncated": truncated})

    show("a")
    show("b\n\n[bold]\x1b[2J")
    show("10 %\r20 %\r\n", "stderr")
    show("x", attempt=2)
    show("", attempt=2, truncated=True)
    view.end()
    view.end()
    assert out.getvalue().splitlines() == [
        "    ab",
        "",
        "    [bold]␛[2J10 %",
        "    20 %",
        "    [the blocks run again, as one script]",
        "    x",
        "    [output left out]",
    ]


async def test_reports_an_error_response() -> None:
    app = make_app(ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed("")))
    async with serve(app) as served:
        with pytest.raises(ChatError, match="404: The model 'x' does not exist"):
            await asyncio.to_thread(converse, served.url, question="?", model="x", api_key=None, eager=True)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_accepts_base_url_with_v1(suffix: str) -> None:
    def first_model(url: str) -> str:
        with Client(url, None) as client:
            return client.model()[0]

    app = make_app(ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed("")))
    async with serve(app) as served:
        assert await asyncio.to_thread(first_model, served.url + suffix) == "scripted"
        with pytest.raises(ChatError, match=r"/elsewhere/v1/models answered 404: is .* the base URL"):
            await asyncio.to_thread(first_model, f"{served.url}/elsewhere")


def tool(status: str, **more: Any) -> dict[str, Any]:
    return {"executed_tools": [{"status": status, "blocks": [{"invoked_at": 1000.5}], **more}]}


def test_client_times_are_converted_to_the_server_clock() -> None:
    recorder = Recorder()
    recorder.record({"role": "assistant", "content": ""}, 0.0)
    recorder.record({"content": "a"}, 0.25)
    recorder.record(tool("pending"), 0.5)  # so the clocks are 1000 s apart
    recorder.record({"content": "b"}, 0.6)
    recorder.record(tool("running"), 1.0)
    run = {"started_at": 1000.5, "finished_at": 1001.25}
    recorder.record(tool("ok", flushed_at=1001.0, waited_ms=250, runs=[run]), 1.25)
    recorder.record({"content": "c"}, 1.3)
    recorder.record({}, 1.5)
    assert recorder.spans() == [
        Span("writes", "write", 1000.25, 1001.0),
        Span("writes", "write", 1001.25, 1001.5),
        Span("block 1", "run", 1000.5, 1001.25),
        Span("waits", "wait", 1001.0, 1001.25),
    ]


def test_empty_reply_has_no_spans() -> None:
    assert Recorder().spans() == []


@pytest.mark.parametrize(("answer", "made"), [("y", True), ("", False)])
async def test_asks_before_a_call(monkeypatch: pytest.MonkeyPatch, answer: str, made: bool) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: answer)
    turn = 'Look.\n```python\ncall note {"text": "hi"}\n```\nI write on.<tool_call>'
    out = io.StringIO()
    async with serve_mcp() as mcp:
        engine = ScriptedEngine(turn, f"It is \\boxed{{42}}.{EOS}", delay_s=0.005)
        tool = {"type": "mcp", "server_label": "demo", "server_url": mcp.url, "require_approval": "always"}
        async with serve(make_app(engine, ToolSandbox(), mcp_private_hosts=mcp.host)) as served:
            await asyncio.to_thread(
                converse,
                served.url,
                question="Note it.",
                model=None,
                api_key=None,
                eager=True,
                tools=[tool],
                console=Console(file=out, width=100),
            )
        assert mcp.log == (["note hi"] if made else [])
    assert 'Allow demo: note(text="hi")? [y/N]' in out.getvalue()
    assert f'demo: note(text="hi") {"approved" if made else "denied"}' in out.getvalue()
