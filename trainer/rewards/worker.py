"""A process that judges answers with math-verify, one at a time: ``python -m trainer.reward_worker``.

It reads requests and writes verdicts, one JSON object a line. The judging is done in a child, forked with all
imported: one that has no verdict by the deadline is killed, wherever it hangs, and the next is forked in
milliseconds. In the worker itself it could not be stopped: computer algebra spends its time in C, where
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
from typing import Literal, cast

from math_verify import LatexExtractionConfig, parse, verify

Verdict = Literal["correct", "incorrect", "unparsable", "bad_gold", "timeout", "error"]

# LaTeX only: math-verify's plain expressions go through SymPy's parser, which evaluates Python.
_EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0),)
_MEMORY_BYTES = 2 << 30
_ANSWERS_PER_CHILD = 500
"""Then a fresh child, so that no cache grows for ever."""
_PR_SET_PDEATHSIG = 1
_WALL_PER_CPU = 4.0
"""An answer may take this many times its CPU deadline on the wall clock."""


_WARM_UP = (
    "12",
    "-3.5",
    r"\frac{3\sqrt{2}}{4}",
    r"x^{2}+2x-1=0",
    r"\left(3,\frac{\pi}{2}\right)",
    r"[0,1)\cup(2,\infty)",
    r"\{1,2,3\}",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
    r"12\%",
    r"\text{east}",
    r"\binom{n}{2}\cdot 5!",
)


def judge(gold: str, answer: str) -> Verdict:
    """Whether two pieces of LaTeX, as they stand in a box, mean the same. May run for ever: see above."""
    gold_parsed, answer_parsed = (
        parse(rf"\boxed{{{latex}}}", extraction_config=_EXTRACTION, parsing_timeout=None)
        for latex in (gold, answer)
    )
    if not gold_parsed:
        return "bad_gold"
    if not answer_parsed:
        return "unparsable"
    return "correct" if verify(gold_parsed, answer_parsed, timeout_seconds=None) else "incorrect"


class Judge:
    """A forked child that calls :func:`judge`, and is forked again whenever it was lost."""

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
    """The child's life. Never returns."""
    with contextlib.suppress(BaseException):
        ctypes.CDLL(None).prctl(
            _PR_SET_PDEATHSIG, signal.SIGKILL
        )  # no orphan runs on if the worker is killed
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for line in os.fdopen(requests):
            os.write(verdicts, judge(*json.loads(line)).encode())
    os._exit(0)


def main() -> None:
    """Serve requests until standard input ends."""
    logging.disable(logging.CRITICAL)
    # The parser learns its tables as it goes. What it learns here every child starts with.
    for latex in _WARM_UP:
        judge(latex, latex)
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
