"""The journal of tool calls, without a sandbox."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from service.sandbox.base import SandboxError, SessionLimits
from service.sandbox.tool_calls import ToolCalls, encode_result, parse_arguments
from service.sandbox.worker_protocol import ToolCallFrame
from service.tools.base import MAX_JSON_DEPTH, MAX_RESULT_BYTES, ToolError
from tests.support.tool_host import RecordingHost
from tests.support.until import until


class Calls:
    """Calls of one session, and the answers to them by number."""

    def __init__(self, tool_calls: int = 10) -> None:
        self.host = RecordingHost()
        self.answers: dict[int, tuple[bool, Any]] = {}
        self.calls = ToolCalls(self.host, SessionLimits(tool_calls=tool_calls), self._send)
        self._number = 0

    async def _send(self, frame: dict[str, Any]) -> None:
        assert frame["op"] == "tool_result"
        self.answers[frame["id"]] = frame["ok"], json.loads(frame["value"])

    def begin(self, name: str, arguments: str = "{}", attempt: int = 1, following: int = 0) -> int:
        self._number += 1
        frame = {
            "op": "tool_call",
            "id": self._number,
            "name": name,
            "arguments": arguments,
            "following": following,
        }
        self.calls.begin(ToolCallFrame(**frame, attempt=attempt))
        return self._number

    async def call(self, name: str, attempt: int = 1, **arguments: Any) -> tuple[bool, Any]:
        number = self.begin(name, json.dumps(arguments), attempt)
        await until(lambda: number in self.answers)
        return self.answers[number]


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def test_results_and_errors_are_answers(calls: Calls) -> None:
    assert await calls.call("add", a=1) == (True, 2)
    assert await calls.call("fail", reason="no") == (False, "no")
    assert await calls.call("add", a="x") == (False, "the tool failed: TypeError")
    calls.calls.flushing = True
    assert await calls.call("missing") == (False, "there is no tool 'missing'")


@pytest.mark.parametrize("arguments", ["", "[]", "1", "{", '{"a": NaN}', "[" * 10_000, '{"a": 1}x'])
async def test_invalid_arguments_are_errors(calls: Calls, arguments: str) -> None:
    number = calls.begin("add", arguments)
    await until(lambda: number in calls.answers)
    assert calls.answers[number][0] is False
    assert calls.host.calls == []


async def test_effects_before_the_flush_break_the_protocol(calls: Calls) -> None:
    for name in ("note", "missing"):
        with pytest.raises(SandboxError, match="before the flush"):
            calls.begin(name)
    calls.calls.flushing = True
    assert await calls.call("note", text="a") == (True, 1)


async def test_a_flood_breaks_the_protocol() -> None:
    calls = Calls(tool_calls=2)
    for _ in range(4):  # two runs
        calls.begin("add", '{"a": 1}')
    with pytest.raises(SandboxError, match="more calls"):
        calls.begin("add")
    calls.calls.close()
    await asyncio.sleep(0)


async def test_a_second_run_gets_the_results_of_the_first(calls: Calls) -> None:
    calls.calls.flushing = True
    first = [await calls.call("note", text=text) for text in ("a", "a", "b")]
    assert first == [(True, 1), (True, 2), (True, 3)]
    second = [await calls.call("note", attempt=2, text=text) for text in ("a", "a", "b")]
    assert second == first
    assert calls.host.notes == ["a", "a", "b"]
    assert await calls.call("note", attempt=2, text="c") == (True, 4)  # a new call


async def test_a_second_run_may_not_make_other_calls_with_effects(calls: Calls) -> None:
    calls.calls.flushing = True
    await calls.call("note", text="a")
    ok, message = await calls.call("note", attempt=2, text="b")
    assert (ok, "not made" in message) == (False, True)
    assert await calls.call("add", attempt=2, a=1) == (True, 2)  # without side effects
    assert calls.host.notes == ["a"]


async def test_a_second_run_waits_for_a_call_of_the_first(calls: Calls) -> None:
    first, second = (calls.begin("slow", '{"seconds": 0.2}', attempt) for attempt in (1, 2))
    await until(lambda: {first, second} <= calls.answers.keys())
    assert len(calls.host.calls) == 1


async def test_the_end_of_a_flush_cancels_and_forgets(calls: Calls) -> None:
    calls.begin("slow", '{"seconds": 60}')
    await until(lambda: len(calls.host.calls) == 1)
    calls.calls.end_flush()
    await until(lambda: calls.host.cancelled == 1)
    assert await calls.call("add", attempt=2, a=1) == (True, 2)


def test_results_are_bounded_json() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in (object(), float("nan"), {1, 2}, deep, "x" * MAX_RESULT_BYTES):
        with pytest.raises(ToolError):
            encode_result(value)
    assert encode_result({"a": "\ud800"}) == '{"a": "\\ud800"}'


def test_arguments_are_json_objects_that_other_programs_can_read() -> None:
    assert parse_arguments('{"a": 1}') == {"a": 1}
    deep = "[" * (MAX_JSON_DEPTH - 1) + "]" * (MAX_JSON_DEPTH - 1)
    assert json.dumps(parse_arguments(f'{{"a": {deep}}}')["a"]) == deep
    for text in (
        f'{{"a": [{deep}]}}',
        f'{{"a": {{"b": {deep}}}}}',
        '{"a": 1e999}',
        '{"a": NaN}',
        r'{"a": "\ud800"}',
        "[]",
        "{",
    ):
        with pytest.raises(ToolError):
            parse_arguments(text)


async def test_calls_of_a_gather_begin_together(calls: Calls) -> None:
    calls.begin("add", '{"a": 1}', following=1)
    await asyncio.sleep(0.05)
    assert calls.host.calls == []
    calls.begin("add", '{"a": 2}')
    await until(lambda: len(calls.answers) == 2)
    assert [arguments["a"] for _, arguments in calls.host.calls] == [1, 2]


async def test_announced_calls_that_never_come_delay_a_call_only(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.sandbox.tool_calls._BATCH_S", 0.01)
    calls.begin("add", '{"a": 1}', following=15)
    await until(lambda: len(calls.answers) == 1)
    calls.begin("add", '{"a": 2}', following=15)
    calls.calls.end_flush()  # a call of a flush that has ended is not made
    await asyncio.sleep(0.05)
    assert len(calls.host.calls) == 1
