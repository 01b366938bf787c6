"""Fake worker that answers each flush with a result chosen by the test."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from service.sandbox.base import SandboxError
from service.sandbox.worker_protocol import Done, OutputFrame, Ready, Result, Settled

_numbers = itertools.count()


def result(status: str = "ok", stdout: str = "") -> Result:
    return Result(
        op="result",
        status=status,  # type: ignore[arg-type]
        stdout=stdout,
        stderr="",
        wall_seconds=0.1,
        exit_code=0,
        signal=None,
        started_at=None,
        finished_at=None,
        runs=[],
    )


def output_frame(text: str) -> OutputFrame:
    return OutputFrame(op="output", stream="stdout", text=text, attempt=1, truncated=False)


class FakeWorker:
    """Worker that records the messages sent to it and answers each flush with the next of ``answers``."""

    def __init__(self) -> None:
        self.name = f"fake-{next(_numbers)}"
        self.sent: list[dict[str, Any]] = []
        self.created_at = time.monotonic()
        self.answers: asyncio.Queue[Ready | Result | OutputFrame | Settled | Done | SandboxError] = (
            asyncio.Queue()
        )
        self.closed = False
        self.destroyed = 0
        self.freezable = False
        self.frozen = 0
        """Number of calls of ``freeze``."""
        self.has_ended = False
        self.sent_bytes = b""
        self.memory_mb: int | None = None

    async def send(self, message: dict[str, Any]) -> None:
        if self.closed:
            raise SandboxError("gone")
        self.sent.append(message)

    async def receive(self) -> Ready | Result | OutputFrame | Settled | Done:
        answer = await self.answers.get()
        if isinstance(answer, SandboxError):
            raise answer
        return answer

    async def send_bytes(self, data: bytes) -> None:
        self.sent_bytes += data

    async def resize(self, memory_mb: int) -> None:
        self.memory_mb = memory_mb

    def freeze(self) -> None:
        self.frozen += 1

    def freezing_failed(self, reason: str) -> None:
        self.freezable = False
        self.reason = reason

    def close(self) -> None:
        self.closed = True

    async def destroy(self) -> None:
        self.close()
        self.destroyed += 1


class Factory:
    """Creates fake workers while ``gate`` is set. The first ``failures`` attempts fail with ``error``."""

    def __init__(self, failures: int = 0, error: type[Exception] = SandboxError) -> None:
        self.error = error
        self.made: list[FakeWorker] = []
        self.failures = failures
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_once = 0
        self.most_at_once = 0

    async def __call__(self) -> FakeWorker:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            if self.failures:
                self.failures -= 1
                raise self.error("no daemon")
            self.made.append(FakeWorker())
            return self.made[-1]
        finally:
            self.at_once -= 1
