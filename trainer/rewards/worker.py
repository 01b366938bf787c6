"""Worker process that compares answers, one at a time: ``python -m trainer.rewards.worker``.

Reads requests and writes verdicts, one JSON object per line. Each answer is compared in a child process,
forked with all modules imported. A child that exceeds the deadline is killed, and forking the next one takes
milliseconds. A worker without a child could not be interrupted: computer algebra spends its time in C code,
in which Python's signal handlers do not run.
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
_REQUESTS_PER_CHILD = 500
"""Requests after which a child is replaced, so that caches do not grow without limit."""
_PR_SET_PDEATHSIG = 1
_WALL_PER_CPU = 4.0
"""Wall-clock limit of a request, as a multiple of its CPU deadline."""


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


class JudgeProcess:
    """A forked child that calls :func:`judge`; forked again whenever it dies."""

    def __init__(self) -> None:
        self._child = 0
        self._answered = 0

    def __call__(self, gold: str, answer: str, deadline_s: float) -> Verdict:
        """Return the verdict, ``timeout`` (see :meth:`_in_time`), or ``error`` if the child died."""
        if not self._child:
            self._fork()
        os.write(self._requests, json.dumps([gold, answer]).encode() + b"\n")
        # A verdict is one write of a few bytes, so it arrives complete. Empty if the child died.
        reply = os.read(self._verdicts, 64).decode() if self._in_time(deadline_s) else "timeout"
        verdict = cast("Verdict", reply or "error")
        self._answered += 1
        if verdict in ("timeout", "error") or self._answered == _REQUESTS_PER_CHILD:
            self.kill()
        return verdict

    def _in_time(self, deadline_s: float) -> bool:
        """Wait for a verdict; return False after ``deadline_s`` of CPU time, or 4 times as long on the wall
        clock.

        CPU time, so that a busy machine does not turn correct answers into incorrect ones.
        """
        clock = (~self._child << 3) | 2  # Linux's id of the CPU clock of another process
        cpu_end = time.clock_gettime(clock) + deadline_s
        wall_end = time.monotonic() + _WALL_PER_CPU * deadline_s
        while True:
            left = min(cpu_end - time.clock_gettime(clock), wall_end - time.monotonic())
            if left <= 0:
                return False
            if select.select([self._verdicts], [], [], left)[0]:
                return True

    def kill(self) -> None:
        """Kill the child, if there is one."""
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
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # no orphan if the worker is killed
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for line in os.fdopen(requests):
            os.write(verdicts, _verdict(*json.loads(line)).encode())
    os._exit(0)


def _verdict(gold: str, answer: str) -> Verdict:
    try:
        return judge(gold, answer)
    except MemoryError:
        raise  # too little memory to continue
    except Exception:
        return "error"


def main() -> None:
    """Serve requests until standard input ends."""
    logging.disable(logging.CRITICAL)
    # The parser fills its tables while parsing. Children inherit the tables that are filled here.
    for gold, answer in _WARM_UP:
        judge(gold, answer)
    gc.collect()
    gc.freeze()
    # Output of libraries must not mix with the verdicts.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    ask = JudgeProcess()
    for line in sys.stdin:
        request = json.loads(line)
        verdict = ask(request["gold"], request["answer"], request["deadline_s"])
        replies.write(json.dumps({"verdict": verdict}) + "\n")
        replies.flush()
    ask.kill()


if __name__ == "__main__":
    main()
