from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from service.playground.record import episode_record, fragment

TURN = "Let\n```python\nx = 6 * 7\n```\nand\n```python\nprint(x)\n```<tool_call>"
SEEN = "\nCode execution result: 42\n</tool_call>\n"
ANSWER = "It is \\boxed{42}."
TOOL: dict[str, Any] = {
    "id": "e_0",
    "status": "ok",
    "output": "42",
    "blocks": [{"code": "x = 6 * 7", "invoked_at": 1001.0}, {"code": "print(x)", "invoked_at": 1002.0}],
    "flushed_at": 1002.5,
    "waited_ms": 250.0,
    "runs": [],
}


def record(text: str = TURN + SEEN + ANSWER, tools: Any = (TOOL,)) -> dict[str, Any]:
    return episode_record(
        model="m",
        question="6 * 7?",
        text=text,
        tools=tools,
        began_at=1000.0,
        seconds=4.0,
        finish="stop",
    )


def text_until(events: list[Any], ms: float) -> str:
    return "".join(value for at, kind, value in events if kind in "to" and at <= ms)


def test_text_lies_between_the_known_times() -> None:
    events = record()["events"]
    first_block = TURN[: TURN.index("\nand")]
    assert text_until(events, 1000) == first_block
    assert text_until(events, 2500) == TURN
    assert text_until(events, 2750) == TURN + SEEN
    assert text_until(events, 4000) == TURN + SEEN + ANSWER
    assert [at for at, *_ in events] == sorted(at for at, *_ in events)


def test_flush_has_pending_running_and_finished_events() -> None:
    snapshots = [(at, value) for at, kind, value in record()["events"] if kind == "b"]
    assert [(at, tool["status"], len(tool["blocks"])) for at, tool in snapshots] == [
        (1000, "pending", 1),
        (2000, "pending", 2),
        (2500, "running", 2),
        (2750, "ok", 2),
    ]


def test_missing_observation_loses_no_text() -> None:
    text = TURN + "\nCode execution result: 4"
    assert text_until(record(text)["events"], 1e9) == text


def test_record_without_code_is_text_only() -> None:
    events = record(ANSWER, ())["events"]
    assert "".join(value for _, kind, value in events if kind == "t") == ANSWER


def test_fragment_contains_the_record() -> None:
    packed = fragment(record())
    assert packed.startswith("#e=")
    data = base64.urlsafe_b64decode(packed[3:] + "=" * (-len(packed[3:]) % 4))
    assert json.loads(zlib.decompress(data, -15)) == record()
