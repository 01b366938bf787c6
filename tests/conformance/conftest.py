"""A server for clients that others wrote: a real socket, and an engine that says what suits the prompt."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from service.deferral.policy import DeferralPolicy
from service.engines.base import OPTIONAL_SAMPLING
from service.sandbox.base import ExecutionResult, OnOutput, Session, SessionLimits
from service.tools.base import ToolHost
from tests.conformance.scripts import reply
from tests.support.reply_engine import ReplyEngine
from tests.support.scripted import printed
from tests.support.serving import make_app, serve
from tests.support.tool_sandbox import ToolSandbox, ToolSession

KEY = "sk-conformance"


class CodeSession(ToolSession):
    """Code that calls tools, or any other code, which prints 42."""

    async def invoke(self, code: str) -> None:
        self._calls = code.startswith("all ")
        if self._calls:
            await super().invoke(code)

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        return await super().flush(on_output) if self._calls else printed("42")


class CodeSandbox(ToolSandbox):
    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> Session:
        return CodeSession(tools)


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """URL of the server. It requires `KEY`, and its engine supports every field."""
    engine = ReplyEngine(reply)
    engine.capabilities = frozenset(OPTIONAL_SAMPLING)
    engine.context_length = 200_000  # a token is a character
    # The other instruction contains an example, which the script would take for an episode.
    policy = DeferralPolicy(prompt="brief-v1")
    app = make_app(engine, CodeSandbox(), policy, api_keys=f"{KEY} name=client")
    ready, stop = threading.Event(), asyncio.Event()
    urls: list[str] = []
    loop = asyncio.new_event_loop()

    async def main() -> None:
        async with serve(app, key=KEY) as served:
            urls.append(served.url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    ready.wait(60)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()
