"""Judge replies to the ordinary requests of ``requests.jsonl``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

REQUESTS: Final = Path(__file__).parent / "requests.jsonl"
_NUMBER: Final = re.compile(r"(?<![\w.])-?\d[\d,  _']*(?:\.\d+)?(?:[eE][+-]?\d+)?")
_GROUPS: Final = re.compile(r"(?<=\d)[,  _'](?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3})|(?<=\d)\\,(?=\d{3})")


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the list."""

    id: str
    category: str
    messages: Sequence[Mapping[str, str]]
    needs_execution: bool
    """Whether the answer must be calculated."""
    answer: str | None
    """The value, if there is one to check."""
    has_demo_call: bool = False
    """Whether the request includes a usage example for the code."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on a reply."""

    unneeded_execution: bool
    missing_execution: bool
    pending_code: bool
    """The reply ends with code that was neither run nor is the answer."""
    empty: bool
    """The reply has no text, or none after the last output."""
    right: bool | None
    """The final text has the expected value; None if there is no value to check."""
    right_from_execution: bool
    """Executed code also printed the value."""


def load(path: Path = REQUESTS) -> list[Request]:
    """Return the requests of a JSON Lines file."""
    return [Request(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def judge(request: Request, message: Mapping[str, Any]) -> Verdict:
    """Judge the ``message`` of a chat completion.

    Args:
        request: what was asked.
        message: the choice's message, as JSON.
    """
    content = str(message.get("content") or "")
    tools = message.get("executed_tools") or []
    outputs = [str(tool["output"]) for tool in tools]
    at = 0
    for output in outputs:  # the first occurrence after the previous one: an answer often repeats the output
        at = max(content.find(output, at), at) + len(output)
    final = content[at:]
    right = None if request.answer is None else holds(final, request.answer)
    return Verdict(
        unneeded_execution=bool(tools) and not request.needs_execution,
        missing_execution=not tools and request.needs_execution,
        pending_code=bool(message.get("unflushed_blocks")),
        empty=not final.strip().strip("`").strip(),
        right=right,
        right_from_execution=bool(right) and any(holds(output, str(request.answer)) for output in outputs),
    )


def holds(text: str, answer: str) -> bool:
    """Return whether ``text`` states ``answer``: the same number, however it is grouped, or the same
    words."""
    wanted = _decimal(answer)
    if wanted is None:
        return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None
    return any(_decimal(found[0]) == wanted for found in _NUMBER.finditer(_GROUPS.sub("", text)))


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(_GROUPS.sub("", text).strip().rstrip(",.' _"))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
