"""The reward: 1 if the last boxed answer is equivalent to the gold answer, else 0.

Answers are compared in worker processes that can be killed. One deadline covers parsing and comparing. It
counts CPU time, so that a busy machine does not turn correct answers into incorrect ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, cast

from service.deferral.answer import last_boxed

Reason = Literal[
    "correct",
    "incorrect",
    "no_answer",  # no complete, non-empty box in the response
    "too_long",  # the box contains more than max_answer_chars characters
    "refused",  # a value exceeds the limits in trainer.rewards.values
    "unparsable",
    "bad_gold",  # the gold answer is not parsable: fix the data
    "timeout",
    "error",  # the comparison crashed or ran out of memory
]

_WALL_PER_CPU = 4.0
"""Same as in trainer.rewards.worker, which is not imported here to keep math-verify out of this process."""
_GRACE_S = 5.0
"""Seconds after the deadline before a worker counts as dead. Workers enforce the deadline themselves."""
_START_S = 120.0
"""Seconds that importing math-verify may take on a busy machine."""


class RewardError(Exception):
    """A worker failed to start or died repeatedly. The answer was not scored."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A value and the reason for it. Shares of reasons become curves.

    Mathematical answers have the value 1.0 for the reason ``correct``, else 0.0; see `Reason`. Your own
    reasons should be a few short words: letters, digits and underscores, at most 40 characters.
    """

    value: float
    reason: str


class AnswerScorer(Protocol):
    """Compares a response with a gold answer. An async context manager."""

    async def score(self, response_text: str, gold: str) -> Reward:
        """Score ``response_text`` against the answer ``gold``.

        Raises:
            RewardError: the response could not be scored.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *args: Any, **kwargs: Any) -> None: ...


class RewardScorer:
    """The `AnswerScorer` of mathematical answers, in several worker processes.

    An async context manager. Workers start when first needed.

    Args:
        workers: number of processes, about 100 MB each. Default: the number of cores.
        deadline_s: CPU seconds for one answer, parsing included. The wall-clock limit is 4 times as long.
        max_answer_chars: longer answers are not compared, unless identical to the gold answer.

    Raises:
        ValueError: ``deadline_s`` is not above 0.
    """

    def __init__(
        self, *, workers: int | None = None, deadline_s: float = 5.0, max_answer_chars: int = 1000
    ) -> None:
        if deadline_s <= 0:
            raise ValueError(f"deadline_s must be above 0, got {deadline_s}")
        self.deadline_s = deadline_s
        self.max_answer_chars = max_answer_chars
        self._workers = [_RewardProcess() for _ in range(workers or os.cpu_count() or 1)]
        self._idle: asyncio.LifoQueue[_RewardProcess] = asyncio.LifoQueue()
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def score(self, response_text: str, gold: str) -> Reward:
        """Compare the last boxed answer of ``response_text`` with ``gold`` (LaTeX, without a box).

        Raises:
            RewardError: no worker could compare them.
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
        reason = await self._compare(gold, answer)
        return Reward(float(reason == "correct"), reason)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [w.process.pid for w in self._workers if w.process and w.process.returncode is None]

    async def close(self) -> None:
        """Stop the workers. The next :meth:`score` starts new ones."""
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

    async def _compare(self, gold: str, answer: str) -> Reason:
        worker = await self._idle.get()
        try:
            try:
                return await worker.compare(gold, answer, self.deadline_s)
            except RewardError:
                # The worker may have been killed from outside, even while idle: retry once.
                return await worker.compare(gold, answer, self.deadline_s)
        finally:
            self._idle.put_nowait(worker)


class _RewardProcess:
    """A worker process, started when needed and restarted if killed. Handles one request at a time."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None

    async def compare(self, gold: str, answer: str, deadline_s: float) -> Reason:
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
            # Cancelled: the pending verdict must not be read as the answer to the next request.
            await self.kill()
            raise

    async def kill(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        # The process group: the worker may be waiting for its child.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        cast("asyncio.StreamWriter", process.stdin).close()


async def _start() -> asyncio.subprocess.Process:
    # One thread each: math libraries would otherwise start a thread pool, which a fork does not copy.
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "trainer.rewards.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


MAX_BAD_SHARE: Final = 0.01
"""Share of bad gold answers above which a data set is rejected."""
_MAX_WORDS: Final = 25
_SHOWN_ROWS: Final = 5


def cut_gold(gold: str) -> str:
    """Return the answer of a GSM8K rationale, after its last ``####``; other gold answers unchanged."""
    return gold.rpartition("####")[2].strip()


def gold_problem(gold: str) -> str | None:
    """Return the reason why ``gold`` is not an answer, or None.

    Only checks the text: an answer without a problem may still fail to parse.
    """
    if not re.search(r"[^\W_]|\\[A-Za-z]|[∞∅°½]", gold):
        return "empty"
    if not _is_balanced(gold.replace("~", " ")):
        return "unbalanced brackets"
    if len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", " ", gold))) > _MAX_WORDS:
        return "a text, not an answer"
    return None


def _is_balanced(text: str) -> bool:
    """Return True if every bracket is closed. Half-open intervals may mix ``(`` and ``]``."""
    braces = brackets = 0
    for token in re.findall(r"\\.|.", text, re.DOTALL):
        braces += {"{": 1, "}": -1}.get(token, 0)
        brackets += {"(": 1, "[": 1, ")": -1, "]": -1}.get(token, 0)
        if braces < 0 or (brackets < 0 and not text.lstrip().startswith("]")):
            return False
    return braces == 0 and (brackets == 0 or text.lstrip().startswith("]"))


def describe_bad_gold(bad: Sequence[tuple[int, str]], total: int) -> str:
    """Return a sentence that lists the first of the ``bad`` rows (row number, problem) out of ``total``."""
    rows = ", ".join(f"row {row} ({problem})" for row, problem in bad[:_SHOWN_ROWS])
    more = f" and {len(bad) - _SHOWN_ROWS} more" if len(bad) > _SHOWN_ROWS else ""
    return f"{len(bad)} of {total} gold answers cannot be graded: {rows}{more}"
