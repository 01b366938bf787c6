"""A sandbox for code of two commands: ``call NAME ARGUMENTS`` calls a tool and prints the result; ``all NAME
LIST`` does so for each of several arguments at the same time."""

from __future__ import annotations

import asyncio
import itertools
import json

from service.sandbox.base import ExecutionResult, OnOutput, Session, SessionLimits
from service.tools.base import CODE_CALL_PREFIX, AnnouncedTools, ToolDeniedError, ToolError, ToolHost


def is_of_client(tools: ToolHost, name: str) -> bool:
    """Return whether the client runs a tool."""
    return any(spec.name == name and spec.by_client for spec in tools.specs)


class ToolSession:
    """Runs the calls of read-only tools immediately, up to the first other one, and the rest at the flush."""

    _ids = itertools.count()

    def __init__(self, tools: ToolHost | None) -> None:
        self._tools = tools
        self._waiting: list[str] = []
        self._printed: list[str] = []
        self._error = ""
        self.log: list[str] = []

    async def prepare(self) -> None: ...

    async def suspend(self) -> None:
        self.log.append("suspend")

    async def resume(self) -> None:
        self.log.append("resume")

    async def invoke(self, code: str) -> None:
        for line in code.splitlines():
            if self._waiting or not await self._run(line, flushed=False):
                self._waiting.append(line)
                if len(self._waiting) == 1:
                    self._announce(line)

    def _announce(self, line: str) -> None:
        """Report the call at which the code waits for the flush."""
        _, name, arguments = line.split(" ", 2)
        host = self._tools
        if isinstance(host, AnnouncedTools) and line.startswith("call "):
            host.announce(name, json.loads(arguments))

    async def _run(self, line: str, *, flushed: bool) -> bool:
        assert self._tools is not None
        verb, name, arguments = line.split(" ", 2)
        read_only = {spec.name: spec.read_only and not spec.needs_approval for spec in self._tools.specs}.get(
            name, True
        )
        if not (flushed or read_only):
            return False
        if not self._error:
            try:
                given = json.loads(arguments)
                prefix = CODE_CALL_PREFIX if is_of_client(self._tools, name) else "call_"
                for result in await asyncio.gather(
                    *(
                        self._tools.call(name, one, f"{prefix}{next(self._ids)}")
                        for one in (given if verb == "all" else [given])
                    )
                ):
                    self._printed.append(result if isinstance(result, str) else json.dumps(result))
            except ToolError as error:
                kind = "ToolDeniedError" if isinstance(error, ToolDeniedError) else "ToolError"
                self._error = f"tools.{kind}: {error}\n"
        return True

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        for line in self._waiting:
            await self._run(line, flushed=True)
        stdout = "".join(f"{text}\n" for text in self._printed)
        result = ExecutionResult(
            stdout, self._error, "error" if self._error else "ok", wall_seconds=0.1, waited_seconds=0.1
        )
        self._waiting, self._printed, self._error = [], [], ""
        return result

    async def close(self) -> None:
        self.log.append("close")


class ToolSandbox:
    """A source of such sessions, which it records."""

    def __init__(self) -> None:
        self.sessions: list[ToolSession] = []

    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> Session:
        self.sessions.append(ToolSession(tools))
        return self.sessions[-1]

    async def ready(self) -> bool:
        return True

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
