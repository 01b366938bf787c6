"""A conversation in the terminal that shows when code waits, runs and delivers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from service.terminal.client import ChatError, Client
from service.terminal.recorder import Recorder
from service.terminal.safe import harmless
from service.terminal.spans import MIN_CONTAINER_WAIT_MS
from service.terminal.timeline import timeline

__all__ = ["ChatError", "converse"]

_SIGNS = {"pending": "\u25cb", "running": "\u25d4", "ok": "\u25cf"}


def converse(
    url: str,
    *,
    question: str | None,
    model: str | None,
    api_key: str | None,
    eager: bool,
    console: Console | None = None,
) -> None:
    """Ask ``question`` and return; without one, ask the user until there is no more input.

    Raises:
        ChatError: the server can't be reached, or refused.
    """
    console = console or Console(highlight=False)
    messages: list[dict[str, str]] = []
    with Client(url, api_key) as client:
        model, notice = client.model(model)
        if notice is not None:
            console.print(harmless(notice), style="yellow", markup=False)
            console.print()
        body: dict[str, Any] = {"model": model, "deferral": {"eager": eager}}
        for turn in _turns(console, question):
            messages.append({"role": "user", "content": turn})
            reply = _answer(console, client, {**body, "messages": messages})
            messages.append({"role": "assistant", "content": reply})


def _turns(console: Console, question: str | None) -> Iterator[str]:
    if question is not None:
        yield question
        return
    while True:
        try:
            line = console.input("[bold]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


def _answer(console: Console, client: Client, body: dict[str, Any]) -> str:
    recorder = Recorder()
    text, at_line_start = "", True
    for delta in client.deltas(body):
        recorder.take(delta, time.time())
        if piece := delta.get("content"):
            console.print(harmless(piece), end="", markup=False, soft_wrap=True)
            text += piece
            at_line_start = piece.endswith("\n")
        for tool in delta.get("executed_tools") or []:
            if not at_line_start:
                console.print()
            console.print(_line(tool), style="dim", markup=False)
            at_line_start = True
    console.print("" if at_line_start else "\n")
    console.print(timeline(recorder.spans(), width=max(console.width - 24, 20)))
    return text


def _line(tool: dict[str, Any]) -> str:
    status, count = tool["status"], len(tool["blocks"])
    blocks = f"{count} block" + ("s" if count > 1 else "")
    sign = _SIGNS.get(status, "\u2717")
    if status in ("pending", "running"):
        return f"  {sign} {blocks} {status}"
    waited = f"waited {tool['waited_ms']:.0f} ms"
    if (container := tool.get("container_wait_ms", 0)) >= MIN_CONTAINER_WAIT_MS:
        waited += f" ({container:.0f} ms for a container)"
    return (
        f"  {sign} {blocks} {status}: ran {tool['wall_ms']:.0f} ms ({tool['hidden_ms']:.0f} hidden), {waited}"
    )
