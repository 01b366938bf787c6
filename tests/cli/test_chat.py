from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from service.cli.chat import ChatError, converse
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve

ASK = "Let\n```python\nx = 6 * 7\n```\nand\n```python\nprint(x)\n```<tool_call>"


async def test_text_calls_and_timeline_are_shown() -> None:
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
    assert "Code execution result: 42" in shown
    assert shown.startswith("This is the demo model")
    assert "\nwrites" in shown
    assert "\nwaits" in shown


async def test_a_refusal_is_told() -> None:
    app = make_app(ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed("")))
    async with serve(app) as served:
        with pytest.raises(ChatError, match="404: The model 'x' does not exist"):
            await asyncio.to_thread(converse, served.url, question="?", model="x", api_key=None, eager=True)
