"""One flush in the making: its blocks run in the base process, its output is taken, its end is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from .capture import Capture
from .config import Config
from .files import Snapshot
from .namespace import RAN
from .processes import NamespaceProcess, kill_all_but, living, oom_kills, threads


@dataclass
class Outcome:
    """What the runner is told. ``exit_code`` and ``signal`` come from the wait status."""

    status: str = "ok"
    stdout: str = ""
    stderr: str = ""
    wall_seconds: float = 0.0
    exit_code: int | None = None
    signal: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    runs: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each block, in Unix seconds; of the whole where the blocks ran as one."""


@dataclass
class Flush:
    """Runs blocks in ``base`` under one run limit, which does not count the time between blocks."""

    base: NamespaceProcess
    spare: NamespaceProcess
    config: Config
    name: str
    seconds_left: float
    outcome: Outcome = field(default_factory=Outcome)
    over: bool = False
    """The script has ended (or was killed): no further block of it runs."""
    kept: bool = False
    """It came to its end and the base process holds the new state."""
    restless: bool = False
    """Timers or threads are left in the base process."""
    forked: bool = False
    """Code has forked: in the joined script the new process would run the blocks that follow, too."""
    _killed_for: str | None = None

    async def begin(self) -> None:
        """Copy the files and open the pipes.

        Raises:
            WorkerError: the files can't be copied.
        """
        self.snapshot = Snapshot(self.config.writable, self.config.uid, 4 * self.config.file_bytes)
        await self.snapshot.take()
        keep, limit = self.config.output_bytes, self.config.output_limit_bytes
        self._stdout = Capture(keep, limit, lambda: self.kill("output_limit"))
        self._stderr = Capture(keep, limit, lambda: self.kill("output_limit"))
        self._oom_before = oom_kills()

    def kill(self, reason: str) -> None:
        """End the script now; ``reason`` becomes its status."""
        if not self.over and self._killed_for is None:
            self._killed_for = reason
            self.base.kill()

    async def run(self, block: str) -> None:
        """Run the next block to its end, or to the end of everything."""
        if self.over:
            return
        first = self.outcome.started_at is None
        began = time.time()
        if first:
            self.outcome.started_at = began
        fds = (self._stdout.writer, self._stderr.writer) if first else ()
        reply = await self._ask(b"R", json.dumps({"name": self.name, "code": block}).encode(), fds)
        self.outcome.runs.append((began, self.outcome.finished_at or began))
        self._stdout.close_writer()
        self._stderr.close_writer()
        self.restless = reply in (RAN[False, True], RAN[True, True])
        self.forked |= reply in (RAN[True, False], RAN[True, True])
        if reply == b"e":
            await self.finish()
            self.over = True

    async def finish(self) -> None:
        """No more blocks: show the last value and come to rest."""
        if self.over:
            return
        reply = await self._ask(b"F")
        if reply in (b"f", b"u"):
            self.over = self.kept = True
            self.restless = reply == b"u" or threads(self.base.pid) > 1
            self.outcome.exit_code = 0

    def quiet(self) -> bool:
        """Is nothing of the script at work while it waits for its next block?"""
        resting = self.base.pid, self.spare.pid
        return not self.restless and threads(self.base.pid) <= 1 and not living(resting)

    async def _ask(self, command: bytes, payload: bytes = b"", fds: tuple[int, ...] = ()) -> bytes:
        """Send a command and wait for its reply, at most for the time left. Empty if the process ended."""
        began = time.monotonic()
        await self.base.command(command, payload, fds)
        try:
            async with asyncio.timeout(self.seconds_left):
                reply = await self.base.reply()
                if not reply:
                    # A script may close our descriptor and go on: only its end ends it.
                    await self.base.exited
        except TimeoutError:
            self.kill("timeout")
            await self.base.exited
            reply = b""
        elapsed = time.monotonic() - began
        self.seconds_left -= elapsed
        self.outcome.wall_seconds += elapsed
        self.outcome.finished_at = time.time()
        if self._killed_for is not None:
            await self.base.exited
            reply = b""
        if not reply:
            self.over = True
            self._judge(self.base.exited.result())
        return reply

    def _judge(self, wait_status: int) -> None:
        code = os.waitstatus_to_exitcode(wait_status)
        if code < 0:
            self.outcome.signal = -code
        else:
            self.outcome.exit_code = code
        if self._killed_for is not None:
            self.outcome.status = self._killed_for
        elif code == -signal.SIGKILL and oom_kills() > self._oom_before:
            self.outcome.status = "oom"
        elif code != 0:
            self.outcome.status = "error"

    async def close(self) -> Outcome:
        """Kill what the script left running and take the rest of its output."""
        if not self.kept:
            self.base.kill()
            await self.base.exited
        await kill_all_but(
            [self.base.pid, self.spare.pid] if self.kept else [self.spare.pid], self.config.uid
        )
        self.outcome.stdout = self._stdout.close()
        self.outcome.stderr = self._stderr.close()
        if not self.kept:
            await self.snapshot.restore()
        self.snapshot.drop()
        return self.outcome

    def as_frame(self) -> dict[str, Any]:
        return {"op": "result", **vars(self.outcome)}
