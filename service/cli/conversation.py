"""A chat in the terminal that shows when code waits, runs and returns.

`Client` calls the API, `Recorder` turns streamed deltas into a timeline, and `converse` prints the chat.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import httpx
from rich.console import Console

from service.cli.output import sanitize
from service.cli.timeline import MIN_CONTAINER_WAIT_MS, Span, episode_spans, timeline


class ChatError(Exception):
    """The server can't be reached, or returned an error."""


class Client:
    """A client of the server at ``url``, with or without ``/v1``.

    Raises (every method):
        ChatError: with the server's error message.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        # A flush may take long, but the server sends keep-alive comments.
        root = url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(base_url=root, headers=headers, timeout=httpx.Timeout(60, connect=5))
        self._completion_id = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def model(self, wanted: str | None = None) -> tuple[str, str | None]:
        """Return the name and the notice, if any, of the model ``wanted`` or of the server's first model."""
        try:
            answer = self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise ChatError(
                f"no server at {self._http.base_url}: {error}. Start one: ih-grpo serve"
            ) from None
        if answer.status_code == 404:
            raise ChatError(f"{answer.url} answered 404: is {self._http.base_url} the base URL of a server?")
        _check(answer)
        models: list[dict[str, Any]] = answer.json()["data"]
        model = next((each for each in models if each["id"] == wanted), models[0] if wanted is None else {})
        return wanted or str(model["id"]), model.get("notice")

    def deltas(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Stream a chat completion and yield the ``delta`` of each chunk."""
        try:
            with self._http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
                if answer.is_error:
                    answer.read()
                _check(answer)
                for line in answer.iter_lines():
                    data = line.removeprefix("data: ")
                    if data == line or data == "[DONE]":  # blank line or comment
                        continue
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise ChatError(chunk["error"]["message"])
                    self._completion_id = str(chunk["id"])
                    yield from (choice["delta"] for choice in chunk["choices"])
        except httpx.HTTPError as error:
            raise ChatError(f"connection lost: {error}") from None

    def decide(self, request_id: str, *, approve: bool) -> None:
        """Approve or deny a call of a tool in the current completion."""
        path = f"/v1/chat/completions/{self._completion_id}/approvals"
        try:
            answer = self._http.post(path, json={"approval_request_id": request_id, "approve": approve})
        except httpx.HTTPError as error:
            raise ChatError(f"connection lost: {error}") from None
        _check(answer)


def _check(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:200]
    raise ChatError(f"{answer.status_code}: {message}")


class Recorder:
    """Collects the times of one reply from its streamed deltas.

    The server announces a block right after its invocation, so the smallest difference between arrival and
    invocation is used as the offset between the local clock and the server's.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._last = 0.0
        self._shift: float | None = None
        self._flushes: list[dict[str, Any]] = []

    def record(self, delta: dict[str, Any], now: float) -> None:
        """Add a delta that arrived at ``now``, in seconds of any clock."""
        self._last = now
        if delta.get("content") and self._began is None:
            self._began = now
        for tool in delta.get("executed_tools") or []:
            if tool["status"] == "pending":
                shift = now - tool["blocks"][-1]["invoked_at"]
                self._shift = shift if self._shift is None else min(self._shift, shift)
            elif tool["status"] not in ("running", "suspended"):
                self._flushes.append(tool)

    def spans(self) -> list[Span]:
        """Return all spans, on the server's clock. Call it after the last delta."""
        shift = self._shift or 0.0
        if self._began is None:
            return []
        return episode_spans(self._began - shift, self._last - shift, self._flushes)


_SIGNS = {"pending": "\u25cb", "running": "\u25d4", "ok": "\u25cf"}


def converse(
    url: str,
    *,
    question: str | None,
    model: str | None,
    api_key: str | None,
    eager: bool,
    tools: Sequence[dict[str, Any]] = (),
    console: Console | None = None,
) -> None:
    """Ask ``question`` and return. Without a question, read from the terminal until the end of input.

    Args:
        url: of the server.
        question: the only question; None for a chat.
        model: name of the model; None for the server's first.
        api_key: key of the API; None for none.
        eager: let blocks start early.
        tools: MCP servers whose tools code may call.
        console: prints and asks.

    Raises:
        ChatError: the server can't be reached, or returned an error.
    """
    console = console or Console(highlight=False)
    messages: list[dict[str, str]] = []
    with Client(url, api_key) as client:
        model, notice = client.model(model)
        if notice is not None:
            console.print(sanitize(notice), style="yellow", markup=False)
            console.print()
        body: dict[str, Any] = {"model": model, "deferral": {"eager": eager, "live_output": True}}
        if tools:
            body["tools"] = list(tools)
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


class ChatView:
    """Prints the output of running code, indented, while it arrives."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._attempt = 1
        self._at_line_start = True

    def show(self, entry: dict[str, Any]) -> None:
        """Print an entry of ``live_output``."""
        if entry["attempt"] > self._attempt:
            self.end()
            self._attempt = entry["attempt"]
            self._print("[the blocks run again, as one script]\n", "dim")
        if entry["truncated"]:
            self._print("" if self._at_line_start else "\n", "dim")
            self._print("[output left out]\n", "dim")
        self._print(entry["text"], "red" if entry["stream"] == "stderr" else "dim")

    def end(self) -> None:
        """End the last line. The next entry belongs to another run."""
        if not self._at_line_start:
            self._console.print()
        self._at_line_start, self._attempt = True, 1

    def _print(self, text: str, style: str) -> None:
        # A progress bar returns to the start of its line, which is not possible in a terminal that scrolls.
        for line in text.replace("\r\n", "\n").replace("\r", "\n").splitlines(keepends=True):
            margin = "    " if self._at_line_start and line != "\n" else ""
            self._console.print(margin + sanitize(line), style=style, end="", markup=False, soft_wrap=True)
            self._at_line_start = line.endswith("\n")


def _answer(console: Console, client: Client, body: dict[str, Any]) -> str:
    recorder, live = Recorder(), ChatView(console)
    text, at_line_start = "", True
    for delta in client.deltas(body):
        recorder.record(delta, time.time())
        if piece := delta.get("content"):
            console.print(sanitize(piece), end="", markup=False, soft_wrap=True)
            text += piece
            at_line_start = piece.endswith("\n")
        for tool in delta.get("executed_tools") or []:
            if not at_line_start:
                console.print()
            live.end()
            console.print(_line(tool), style="dim", markup=False)
            at_line_start = True
        for entry in delta.get("live_output") or []:
            live.show(entry)
        for request in delta.get("approval_requests") or []:
            if not at_line_start:
                console.print()
            _approval(console, client, request)
            at_line_start = True
    console.print("" if at_line_start else "\n")
    console.print(timeline(recorder.spans(), width=max(console.width - 24, 20)))
    return text


def _approval(console: Console, client: Client, request: dict[str, Any]) -> None:
    """Ask whether code may make a call, or show the decision. The model keeps writing meanwhile."""
    given = ", ".join(f"{name}={json.dumps(value)}" for name, value in request["arguments"].items())
    call = sanitize(f"{request['server_label']}: {request['name']}({given})")
    if request["status"] != "open":
        console.print(f"  {call} {request['status']}", style="dim", markup=False)
        return
    console.print(f"  Allow {call}? [y/N] ", end="", style="bold", markup=False)
    try:
        approve = console.input().strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        approve = False
    try:
        client.decide(request["id"], approve=approve)
    except ChatError as error:  # it has expired, or the code has ended
        console.print(f"  {sanitize(str(error))}", style="yellow", markup=False)


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
