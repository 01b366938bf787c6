"""Runs the code of our own traces in this process, with the outcome a sandbox would give.

Only for code that `trainer.quickstart.problems` wrote: it is `exec`, and no isolation at all. What a model
writes runs in a sandbox.
"""

from __future__ import annotations

import contextlib
import io
import traceback
from typing import Any

from service.sandbox.base import ExecutionResult


class Notebook:
    """One namespace. A script that fails leaves it as it was."""

    def __init__(self) -> None:
        self._names: dict[str, Any] = {}

    def run(self, code: str) -> ExecutionResult:
        names = dict(self._names)
        stdout, stderr = io.StringIO(), ""
        try:
            with contextlib.redirect_stdout(stdout):
                exec(code, names)  # noqa: S102 (see the module's docstring)
        except Exception as error:
            stderr = "".join(traceback.format_exception(error))
        else:
            self._names = names
        return ExecutionResult(
            stdout=stdout.getvalue(),
            stderr=stderr,
            status="error" if stderr else "ok",
            wall_seconds=0.0,
            waited_seconds=0.0,
        )
