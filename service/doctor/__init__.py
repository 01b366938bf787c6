"""Checks of a machine before a server starts (``ih-grpo doctor``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. A server can start despite ``warn``, but not despite ``fail``."""

    check: str
    verdict: Verdict
    found: str
    hint: str = ""
    """Suggested fix; empty if the check passed."""
