"""Checks of a machine before a server starts (``ih-grpo doctor``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the report. ``warn`` lets a server start; ``fail`` does not."""

    check: str
    verdict: Verdict
    found: str
    hint: str = ""
    """What to do, where not all is well."""
