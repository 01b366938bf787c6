"""A fake sandbox with files. It executes Python in this process, and its work folder is a dict."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import itertools
import traceback
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from service.sandbox.base import ExecutionResult, OnOutput, SandboxError, SessionLimits
from service.sandbox.files import Display, FileChanges, SkippedFile, WorkFile
from service.tools.base import CODE_CALL_PREFIX, ToolHost
from tests.support.tool_sandbox import is_of_client

PNG = b"\x89PNG\r\n\x1a\nfigure"


class FakeFileSession:
    """A session whose code has the dicts ``inputs`` and ``work``, ``show(type, content)``, ``skip`` and
    ``call(tool, **arguments)``, whose result is printed at the end."""

    _call_ids = itertools.count()

    def __init__(self, sandbox: FakeFileSandbox, limits: SessionLimits) -> None:
        self.sandbox = sandbox
        self.limits = limits
        self.tools: ToolHost | None = None
        self.log: list[str] = []
        self.inputs: dict[str, bytes] = {}
        self.work: dict[str, bytes] = {}
        self.skipped: list[SkippedFile] = []
        self.is_leased = False
        self.is_frozen = False
        self._seen: dict[str, bytes] = {}
        self._shown: list[tuple[Any, bytes]] = []
        self._pending: list[str] = []
        self._names: dict[str, Any] = {}

    @property
    def is_alive(self) -> bool:
        return self.is_leased

    async def prepare(self) -> None:
        self.log.append("prepare")

    async def lease(self) -> None:
        if self.sandbox.is_full:
            raise SandboxError("no container")
        self.is_leased = True
        self.log.append("lease")
        self.inputs, self.work, self._names = {}, {}, {}

    async def configure(self, limits: SessionLimits, tools: ToolHost | None = None) -> None:
        self.limits, self.tools = limits, tools

    async def invoke(self, code: str) -> None:
        assert self.is_leased
        self.is_frozen = False
        self._pending.append(code)

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        blocks, self._pending = self._pending, []
        code, before = "\n".join(blocks), dict(self.work)
        if "die()" in code:
            self.is_leased = False
            return ExecutionResult("", "died", "sandbox_error", 0.0, 0.0, container="box")
        self._shown = []
        self._names |= {
            "inputs": self.inputs,
            "work": self.work,
            "show": lambda kind, content: self._shown.append((kind, content)),
            "skip": lambda path, reason: self.skipped.append(SkippedFile(path, reason)),
        }
        called: list[tuple[str, dict[str, Any]]] = []
        self._names["call"] = lambda tool, **arguments: called.append((tool, arguments))
        out = io.StringIO()
        status: Any = "ok"
        with contextlib.redirect_stdout(out):
            try:
                exec(code, self._names)
            except Exception:
                status, self.work = "error", before
                return ExecutionResult("", traceback.format_exc(), "error", 0.25, 0.25, container="box")
        for name, arguments in called:
            assert self.tools is not None
            prefix = {True: CODE_CALL_PREFIX, False: "call_"}[is_of_client(self.tools, name)]
            print(await self.tools.call(name, arguments, f"{prefix}{next(self._call_ids)}"), file=out)
        return ExecutionResult(out.getvalue(), "", status, 0.25, 0.25, exit_code=0, container="box")

    async def put(self, name: str, size: int, content: AsyncIterator[bytes]) -> None:
        data = b"".join([chunk async for chunk in content])
        assert len(data) == size
        if name in self.inputs:
            raise ValueError("the input exists")
        self.inputs[name] = data

    async def remove(self, name: str) -> None:
        del self.inputs[name]

    async def changes(self) -> FileChanges:
        changed = {path: data for path, data in self.work.items() if self._seen.get(path) != data}
        self._seen = dict(self.work)
        skipped, self.skipped = tuple(self.skipped), []
        return FileChanges(
            tuple(WorkFile(path, len(data), _digest(data)) for path, data in changed.items()),
            tuple(
                Display(index, kind, len(data), _digest(data))
                for index, (kind, data) in enumerate(self._shown)
            ),
            skipped,
        )

    async def read(self, item: WorkFile | Display) -> AsyncGenerator[bytes, None]:
        data = self.work[item.path] if isinstance(item, WorkFile) else self._shown[item.index][1]
        for start in range(0, len(data), 4):
            await asyncio.sleep(0)
            yield data[start : start + 4]

    async def park(self) -> None:
        self._pending = []
        self.log.append("park")

    async def freeze(self) -> None:
        self.is_frozen = True
        self.log.append("freeze")

    async def suspend(self) -> None:
        self.log.append("suspend")

    async def resume(self) -> None:
        self.log.append("resume")

    async def close(self) -> None:
        self.is_leased = False
        self.log.append("close")


class FakeFileSandbox:
    """A sandbox that records its sessions."""

    def __init__(self) -> None:
        self.sessions: list[FakeFileSession] = []
        self.is_full = False

    def file_session(self, limits: SessionLimits) -> FakeFileSession:
        self.sessions.append(FakeFileSession(self, limits))
        return self.sessions[-1]

    def session(self, limits: SessionLimits, tools: object = None) -> FakeFileSession:
        session = self.file_session(limits)
        session.is_leased = True
        return session

    @property
    def alive(self) -> list[FakeFileSession]:
        return [session for session in self.sessions if session.is_alive]

    async def ready(self) -> bool:
        return True

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
