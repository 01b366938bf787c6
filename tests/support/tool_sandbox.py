"""A sandbox for code of one command: ``call NAME ARGUMENTS`` calls a tool and prints the result."""

from __future__ import annotations

import itertools
import json

from service.sandbox.base import ExecutionResult, OnOutput, Session, SessionLimits
from service.tools.base import ToolError, ToolHost


class ToolSession:
    """Runs the calls of read-only tools immediately, up to the first other one, and the rest at the flush."""

    _ids = itertools.count()

    def __init__(self, tools: ToolHost | None) -> None:
        self._tools = tools
        self._waiting: list[str] = []
        self._printed: list[str] = []
        self._error = ""

    async def prepare(self) -> None: ...

    async def invoke(self, code: str) -> None:
        for line in code.splitlines():
            if self._waiting or not await self._run(line, flushed=False):
                self._waiting.append(line)

    async def _run(self, line: str, *, flushed: bool) -> bool:
        assert self._tools is not None
        _, name, arguments = line.split(" ", 2)
        read_only = {spec.name: spec.read_only for spec in self._tools.specs}.get(name, True)
        if not (flushed or read_only):
            return False
        if not self._error:
            try:
                result = await self._tools.call(name, json.loads(arguments), f"call_{next(self._ids)}")
                self._printed.append(result if isinstance(result, str) else json.dumps(result))
            except ToolError as error:
                self._error = f"tools.ToolError: {error}\n"
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

    async def close(self) -> None: ...


class ToolSandbox:
    """A source of such sessions."""

    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> Session:
        return ToolSession(tools)

    async def ready(self) -> bool:
        return True

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
