"""A process that judges answers, one at a time: ``python -m trainer.rewards.worker``.

It reads requests and writes verdicts, one JSON object a line. Each answer is judged in a child process,
forked with everything imported. A child without a verdict by the deadline is killed, and the next is forked
in milliseconds. The worker itself could not be interrupted: computer algebra spends its time in C, where
Python's signal handlers don't run.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import select
import signal
import sys
import time
from typing import cast

from trainer.rewards.math_answers import Verdict, judge

_MEMORY_BYTES = 2 << 30
_ANSWERS_PER_CHILD = 500
"""A child is replaced after so many answers, so that no cache grows without limit."""
_PR_SET_PDEATHSIG = 1
_WALL_PER_CPU = 4.0
"""An answer may take this many times its CPU deadline on the wall clock."""


_WARM_UP = (
    ("12", "13"),
    ("-3.5", r"\frac{7}{3}"),
    (r"\frac{3\sqrt{2}}{4}", r"\frac{1}{2}"),
    (r"x^{2}+2x-1=0", "y=3x"),
    (r"\left(3,\frac{\pi}{2}\right)", "(3, 2)"),
    (r"[0,1)\cup(2,\infty)", "x>2"),
    (r"\{1,2,3\}", "1,2,4"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&n\end{pmatrix}"),
    (r"12\%", "0.13"),
    (r"\text{east}", "5"),
    (r"\binom{n}{2}\cdot 5!", r"\log_2 n+\sin n"),
)


class Judge:
    """A forked child that calls :func:`judge`, forked again whenever it was lost."""

    def __init__(self) -> None:
        self._child = 0
        self._answered = 0

    def __call__(self, gold: str, answer: str, deadline_s: float) -> Verdict:
        """The verdict, ``timeout`` (see :meth:`_in_time`), or ``error`` if the child died."""
        if not self._child:
            self._fork()
        os.write(self._requests, json.dumps([gold, answer]).encode() + b"\n")
        # A verdict is one write of a few bytes, so it arrives whole. Nothing at all: the child died.
        reply = os.read(self._verdicts, 64).decode() if self._in_time(deadline_s) else "timeout"
        verdict = cast("Verdict", reply or "error")
        self._answered += 1
        if verdict in ("timeout", "error") or self._answered == _ANSWERS_PER_CHILD:
            self.kill()
        return verdict

    def _in_time(self, deadline_s: float) -> bool:
        """Wait for a verdict. False once the child has used ``deadline_s`` of CPU, or 4 times that went by.

        CPU time, so that a busy machine does not turn right answers into wrong ones.
        """
        clock = (~self._child << 3) | 2  # how Linux numbers the CPU clock of another process
        cpu_end = time.clock_gettime(clock) + deadline_s
        wall_end = time.monotonic() + _WALL_PER_CPU * deadline_s
        while True:
            left = min(cpu_end - time.clock_gettime(clock), wall_end - time.monotonic())
            if left <= 0:
                return False
            if select.select([self._verdicts], [], [], left)[0]:
                return True

    def kill(self) -> None:
        """End the child, if there is one."""
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            os.close(self._requests)
            os.close(self._verdicts)
            self._child = 0

    def _fork(self) -> None:
        requests, self._requests = os.pipe()
        self._verdicts, verdicts = os.pipe()
        self._answered = 0
        self._child = os.fork()
        if self._child:
            os.close(requests)
            os.close(verdicts)
            return
        os.close(self._requests)
        _serve(requests, verdicts)


def _serve(requests: int, verdicts: int) -> None:
    """The main loop of the child. Never returns."""
    with contextlib.suppress(BaseException):
        ctypes.CDLL(None).prctl(
            _PR_SET_PDEATHSIG, signal.SIGKILL
        )  # no orphan runs on if the worker is killed
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for line in os.fdopen(requests):
            os.write(verdicts, _verdict(*json.loads(line)).encode())
    os._exit(0)


def _verdict(gold: str, answer: str) -> Verdict:
    try:
        return judge(gold, answer)
    except MemoryError:
        raise  # too little is left to go on with
    except Exception:
        return "error"


def main() -> None:
    """Serve requests until standard input ends."""
    logging.disable(logging.CRITICAL)
    # The parser fills its tables as it reads. Children start with those that are filled here.
    for gold, answer in _WARM_UP:
        judge(gold, answer)
    gc.collect()
    gc.freeze()
    # Whatever a library may print must not end up between the verdicts.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    ask = Judge()
    for line in sys.stdin:
        request = json.loads(line)
        verdict = ask(request["gold"], request["answer"], request["deadline_s"])
        replies.write(json.dumps({"verdict": verdict}) + "\n")
        replies.flush()
    ask.kill()


if __name__ == "__main__":
    main()
