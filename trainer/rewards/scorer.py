"""The reward: 1 if the last boxed answer means the same as the gold answer, else 0.

Answers are judged in worker processes that can be killed. One deadline holds over parsing both answers and
comparing them. It counts CPU time, so that a busy machine does not turn right answers into wrong ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, cast

from service.deferral.answer import last_boxed
from trainer.rewards.gold_answers import cut_gold, gold_problem

Reason = Literal[
    "correct",
    "incorrect",
    "no_answer",  # no complete box in the response, or only empty ones
    "too_long",  # more characters in the box than any answer needs
    "refused",  # its value is out of all proportion, see trainer.rewards.expression_guard
    "unparsable",
    "bad_gold",  # the gold answer itself can't be read: fix the data
    "timeout",
    "error",  # the comparison crashed or ran out of memory
]

_WALL_PER_CPU = 4.0
"""As in trainer.rewards.worker, which is not imported here: math-verify stays out of this process."""
_GRACE_S = 5.0
"""Seconds that a worker may take beyond the deadline, which it enforces itself, before it counts as dead."""
_START_S = 120.0
"""Seconds that importing math-verify may take on a busy machine."""


class RewardError(Exception):
    """A worker could not be started or kept dying. The answer was not judged."""


@dataclass(frozen=True, slots=True)
class Reward:
    """``value`` is 1.0 if and only if ``reason`` is ``correct``; else 0.0."""

    value: float
    reason: Reason


class RewardScorer:
    """Judge of answers in several processes. An async context manager; workers start when first needed.

    Args:
        workers: processes; the number of cores if not given. Each holds about 100 MB.
        deadline_s: CPU seconds for one answer, from parsing to comparing; on the wall clock 4 times as many.
        max_answer_chars: an answer with more characters is not judged, unless it is the gold answer itself.
    """

    def __init__(
        self, *, workers: int | None = None, deadline_s: float = 5.0, max_answer_chars: int = 1000
    ) -> None:
        if deadline_s <= 0:
            raise ValueError(f"deadline_s must be above 0, got {deadline_s}")
        self.deadline_s = deadline_s
        self.max_answer_chars = max_answer_chars
        self._workers = [_Worker() for _ in range(workers or os.cpu_count() or 1)]
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def score(self, response_text: str, gold: str) -> Reward:
        """Judge the last boxed answer of ``response_text`` against ``gold`` (LaTeX, without a box).

        Raises:
            RewardError: no worker could judge it.
        """
        answer = last_boxed(response_text)
        if answer is None:
            return Reward(0.0, "no_answer")
        if answer.split() == cut_gold(gold).split():
            return Reward(1.0, "correct")
        if gold_problem(cut_gold(gold)):
            return Reward(0.0, "bad_gold")
        if len(answer) > self.max_answer_chars:
            return Reward(0.0, "too_long")
        reason = await self._judge(gold, answer)
        return Reward(float(reason == "correct"), reason)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return [w.process.pid for w in self._workers if w.process and w.process.returncode is None]

    async def close(self) -> None:
        """End the workers. The next :meth:`score` would start new ones."""
        await asyncio.gather(*(worker.kill() for worker in self._workers))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _judge(self, gold: str, answer: str) -> Reason:
        worker = await self._idle.get()
        try:
            try:
                return await worker.judge(gold, answer, self.deadline_s)
            except RewardError:
                # Killed from outside, perhaps while idle. Once is bad luck.
                return await worker.judge(gold, answer, self.deadline_s)
        finally:
            self._idle.put_nowait(worker)


class _Worker:
    """One process, started when needed, again if it was killed. One question at a time."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None

    async def judge(self, gold: str, answer: str, deadline_s: float) -> Reason:
        request = json.dumps({"gold": gold, "answer": answer, "deadline_s": deadline_s}) + "\n"
        fresh = self.process is None
        try:
            process = self.process = self.process or await _start()
            assert process.stdin is not None  # noqa: S101 - for the type checker
            assert process.stdout is not None  # noqa: S101
            process.stdin.write(request.encode())
            await process.stdin.drain()
            async with asyncio.timeout(_WALL_PER_CPU * deadline_s + _GRACE_S + (_START_S if fresh else 0.0)):
                reply = await process.stdout.readline()
            return cast("Reason", json.loads(reply)["verdict"])
        except (OSError, TimeoutError, ValueError) as error:
            await self.kill()
            raise RewardError(f"a reward worker failed: {error or type(error).__name__}") from error
        except BaseException:
            # Cancelled: the verdict still to come must not answer the next question.
            await self.kill()
            raise

    async def kill(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        # The group: with the worker goes the child that it may be waiting for.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        cast("asyncio.StreamWriter", process.stdin).close()


async def _start() -> asyncio.subprocess.Process:
    # One thread each: math libraries would otherwise start a pool of them that a fork doesn't copy.
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "trainer.rewards.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
