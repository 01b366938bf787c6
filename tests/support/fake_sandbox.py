"""Fake sandbox that executes a few commands in memory. Run as a program, it serves them through a runner."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from pydantic import SecretStr

from service.sandbox.base import ExecutionResult, OnOutput, OutputChunk, SandboxError, SessionLimits
from service.sandbox.pool import PoolStats

TOKEN = SecretStr("a-token-for-the-tests-only")


class FakeSession:
    """Session that runs its blocks at the flush.

    ``print TEXT`` prints, ``sleep SECONDS`` waits, ``set TEXT`` stores a text and ``get`` prints it.
    ``break`` results in a sandbox error, ``refuse`` raises one at the invocation, ``bug`` raises an
    unexpected error.
    """

    def __init__(self, sandbox: FakeSandbox, limits: SessionLimits) -> None:
        self.limits = limits
        self.closed = False
        self._sandbox = sandbox
        self._pending: list[str] = []
        self._stored = "nothing"

    async def prepare(self) -> None:
        self._sandbox.announced += 1

    async def invoke(self, code: str) -> None:
        if code == "refuse":
            raise SandboxError("no container")
        self._sandbox.active.add(self)
        self._pending.append(code)

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        began = time.time()
        self._sandbox.live_flushes += on_output is not None
        blocks, self._pending = self._pending, []
        out = ""
        for block in blocks:
            verb, _, rest = block.partition(" ")
            self._sandbox.record(block)
            if verb == "print":
                out += rest + "\n"
                if on_output is not None:
                    on_output(OutputChunk("stdout", rest + "\n"))
            elif verb == "sleep":
                await asyncio.sleep(float(rest))
            elif verb == "set":
                self._stored = rest
            elif verb == "get":
                out += self._stored + "\n"
            elif verb == "bug":
                raise RuntimeError("a bug")
            else:
                return ExecutionResult("", "broken", "sandbox_error", 0.0, 0.0)
        self._sandbox.finished += 1
        took = time.time() - began
        return ExecutionResult(
            out, "", "ok", took, took, exit_code=0, started_at=began, finished_at=time.time()
        )

    async def suspend(self) -> None: ...
    async def resume(self) -> None: ...

    async def close(self) -> None:
        self.closed = True
        self._sandbox.active.discard(self)


class FakeSandbox:
    """Sandbox that records its sessions. Each block that ran is appended to the file ``log`` as a line."""

    def __init__(self, log: Path | None = None) -> None:
        self.sessions: list[FakeSession] = []
        self.finished = 0
        """Flushes that ran to their end."""
        self.live_flushes = 0
        """Flushes with live output."""
        self.active: set[FakeSession] = set()
        self.announced = 0
        self.is_ready = True
        self.running = False
        self.ran: list[str] = []
        self._log = log

    def record(self, block: str) -> None:
        self.ran.append(block)
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(block + "\n")

    def session(self, limits: SessionLimits, tools: object = None) -> FakeSession:
        self.sessions.append(FakeSession(self, limits))
        return self.sessions[-1]

    def stats(self) -> PoolStats:
        return PoolStats(
            idle=0,
            leased=len(self.active),
            starting=0,
            waiting=0,
            started=len(self.sessions),
            destroyed=0,
            start_failures=0,
            queue_timeouts=0,
            lease_wait_seconds=0.0,
            leases=len(self.sessions),
            kills={"timeout": 3},
            orphans_reaped=0,
        )

    async def ready(self) -> bool:
        return self.is_ready

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False


if __name__ == "__main__":
    from service.sandbox.runner.server import serve_runner
    from service.sandbox.runner.settings import RunnerSettings

    options = dict(argument.split("=", 1) for argument in sys.argv[3:])
    settings = RunnerSettings.model_validate({"bind": sys.argv[1], "token": TOKEN, **options})
    serve_runner(settings, FakeSandbox(Path(sys.argv[2])))
