"""Suspended flushes in real containers: their time, their processes, and their end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service.episode.block_queue import EventFeed
from service.episode.tool_calls import RecordedTools
from service.sandbox.base import ExecutionResult, Sandbox, Session, SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.files import FileSandbox
from service.tools.approval import Approvals
from service.tools.base import ToolSpec
from service.tools.client import ClientCalls
from service.tools.toolset import Tool, ToolSet
from tests.support.until import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]
LIMITS = SessionLimits(run_limit_s=4.0, tool_wait_s=1.0)
WAIT_S = 2.5
"""Longer than the tool wait."""
ASK = ToolSpec("ask", "Ask.", {"type": "object", "properties": {"q": {"type": "string"}}}, by_client=True)


@pytest.fixture(params=["docker_sandbox", "runner_client"], scope="module")
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    found: Sandbox = request.getfixturevalue(request.param)
    return found


class Asking:
    """A session whose code may ask the client, and the questions that wait."""

    def __init__(self, sandbox: Sandbox, limits: SessionLimits = LIMITS) -> None:
        self.client = ClientCalls()
        self.tools = ToolSet([self.client.tool(ASK, "ask")])
        self.session: Session = sandbox.session(limits, self.tools)

    @property
    def waiting(self) -> list[str]:
        return list(self.client._open)

    async def begin(self, code: str, calls: int = 1) -> asyncio.Task[ExecutionResult]:
        await self.session.invoke(code)
        flushing = asyncio.create_task(self.session.flush())
        await until(lambda: len(self.waiting) == calls or flushing.done())
        assert not flushing.done(), flushing.result()
        return flushing

    def answer(self, text: str = "yes") -> None:
        self.client.answer({call_id: f"{text}{at}" for at, call_id in enumerate(self.waiting)})

    async def suspended(self, code: str, calls: int = 1, wait_s: float = WAIT_S) -> ExecutionResult:
        """Suspend the code when it asks, wait, and answer."""
        flushing = await self.begin(code, calls)
        await self.session.suspend()
        await asyncio.sleep(wait_s)
        assert not flushing.done(), flushing.result()
        await self.session.resume()
        self.answer()
        return await flushing

    async def __aenter__(self) -> Asking:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()


async def test_suspended_time_counts_for_no_limit(sandbox: Sandbox) -> None:
    async with Asking(sandbox) as asking:
        result = await asking.suspended("x = 5\nfrom tools import ask\nprint(ask(q='a'), x)")
        assert (result.status, result.stdout) == ("ok", "yes0 5\n")
        assert result.wall_seconds < WAIT_S
        assert sum(end - start for start, end in result.pauses) > WAIT_S - 0.5
        again = await asking.suspended("print(ask(q='b'), x)", wait_s=0.1)  # the namespace is kept
        assert again.stdout == "yes0 5\n"


async def test_unsuspended_time_counts_for_the_wait_for_tools(sandbox: Sandbox) -> None:
    async with Asking(sandbox) as asking:
        flushing = await asking.begin("from tools import ask\nask(q='a')")
        assert (await flushing).status == "timeout"


async def test_calls_of_a_gather_arrive_together(sandbox: Sandbox) -> None:
    async with Asking(sandbox) as asking:
        code = "from tools import ask, gather\nprint(gather(ask.bind(q=str(i)) for i in range(12)))"
        result = await asking.suspended(code, calls=12, wait_s=0.1)
        assert result.stdout == f"{[f'yes{at}' for at in range(12)]}\n"


BUSY = """
import os, threading, time
from tools import ask
count, seen = [0], []
def spin():
    while not seen:
        count[0] += 1
threading.Thread(target=spin, daemon=True).start()
child = os.fork()
if not child:
    while True:
        open('beat', 'a').write('x')
        time.sleep(0.01)
time.sleep(0.2)
before = count[0], os.path.getsize('beat'), time.process_time()
ask(q='a')
seen.append(1)
print(time.process_time() - before[2] < 1.2, os.path.getsize('beat') - before[1] < 100)
os.kill(child, 9)
"""


async def test_threads_and_processes_are_stopped_meanwhile(docker_sandbox: Sandbox) -> None:
    async with Asking(docker_sandbox) as asking:
        result = await asking.suspended(BUSY)
        assert (result.status, result.stdout, result.stderr) == ("ok", "True True\n", "")


async def test_code_that_can_not_reach_its_end_still_has_its_limit(docker_sandbox: Sandbox) -> None:
    async with Asking(docker_sandbox, SessionLimits(run_limit_s=1.0, tool_wait_s=1.0)) as asking:
        result = await asking.suspended("from tools import ask\nask(q='a')\nwhile True: pass", wait_s=1.5)
        assert result.status == "timeout"


async def test_eager_code_asks_at_the_flush_and_continues(sandbox: Sandbox) -> None:
    async with Asking(sandbox) as asking:
        await asking.session.invoke("from tools import ask\nx = ask(q='a')")
        await asyncio.sleep(0.5)
        assert asking.waiting == []
        result = await asking.suspended("print(x)", wait_s=0.2)
        assert (result.stdout, result.eager_fallback) == ("yes0\n", None)


async def test_closing_a_suspended_session_releases_the_container(docker_sandbox: DockerSandbox) -> None:
    async with Asking(docker_sandbox) as asking:
        flushing = await asking.begin("from tools import ask\nask(q='a')")
        await asking.session.suspend()
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
    await until(lambda: docker_sandbox.stats().leased == 0)


async def test_killed_container_is_reported(docker_sandbox: DockerSandbox) -> None:
    async with Asking(docker_sandbox) as asking:
        flushing = await asking.begin("from tools import ask\nask(q='a')")
        await asking.session.suspend()
        worker: Any = asking.session._worker  # type: ignore[attr-defined]
        await worker.destroy()
        assert (await flushing).status == "sandbox_error"
        await asking.session.resume()
        assert (
            await asking.suspended("from tools import ask\nprint(ask(q='b'))", wait_s=0.1)
        ).stdout == "yes0\n"


async def test_sessions_with_files_are_suspended_too(sandbox: Sandbox) -> None:
    assert isinstance(sandbox, FileSandbox)
    asking = Asking(sandbox)
    files = sandbox.file_session(SessionLimits(figures="png"))
    asking.session = files
    async with asking:
        await files.lease()
        await files.configure(LIMITS, asking.tools)
        result = await asking.suspended("from tools import ask\nopen('a', 'w').write(ask(q='a'))")
        assert result.status == "ok"
        [file] = (await files.changes()).files
        assert (file.path, file.size) == ("a", 4)


async def test_suspending_without_a_flush_has_no_effect(sandbox: Sandbox) -> None:
    async with Asking(sandbox) as asking:
        await asking.session.suspend()
        await asking.session.resume()
        await asking.session.invoke("print(1)")
        assert (await asking.session.flush()).stdout == "1\n"
        await asking.session.suspend()
        await asking.session.resume()
        await asking.session.invoke("print(2)")
        assert (await asking.session.flush()).stdout == "2\n"


ORDER = ToolSpec("order", "Order.", {"type": "object"}, needs_approval=True, read_only=True)
GATED = """
from tools import ToolDeniedError, ToolError, order
try:
    print(order(item='tea'))
except ToolDeniedError as error:
    print(isinstance(error, ToolError), error)
"""


@pytest.mark.parametrize("approve", [True, False])
async def test_gated_call_is_announced_early_and_made_at_the_flush(sandbox: Sandbox, approve: bool) -> None:
    made: list[dict[str, Any]] = []

    async def order(arguments: dict[str, Any], _call_id: str) -> object:
        made.append(arguments)
        return "done"

    tools = ToolSet([Tool(ORDER, order)])
    approvals = Approvals(tools.error_in, timeout_s=60, clock=time.time)
    session = sandbox.session(LIMITS, RecordedTools(tools, time.time, EventFeed(), approvals))
    try:
        await session.invoke(GATED)
        await until(lambda: bool(approvals.open))
        [request] = approvals.open
        assert (request.name, request.arguments, approvals.blocking) == ("order", {"item": "tea"}, ())
        approvals.decide(request.id, approve=approve, reason=None if approve else "no tea")
        await asyncio.sleep(0.2)
        assert made == []
        result = await session.flush()
        assert (result.status, result.eager_fallback) == ("ok", None)
        if approve:
            assert (result.stdout, made) == ("done\n", [{"item": "tea"}])
        else:
            assert (result.stdout, made) == ("True order() was denied: no tea\n", [])
    finally:
        await session.close()
