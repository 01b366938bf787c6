from __future__ import annotations

import ast
from typing import Any

import pytest

from benchmarks.deferral import Measured, SlowBlocks, Way, comparison, latency, ratio, rotated, table
from service.sandbox.base import ExecutionResult, SessionLimits
from tests.support.scripted import ScriptedSandbox


def measured(problem: int, seconds: float, **fields: Any) -> Measured:
    values: dict[str, Any] = {
        "tokens": 100, "flushes": 2, "blocks": 4, "delayed": 1, "by_model": 4, "tool_seconds": 3.0,
        "waited": 2.0, "container": 0.1, "hidden": 1.0, "errors": (), "right": True, "text": "a",
    }  # fmt: skip
    return Measured(problem=problem, seconds=seconds, **{**values, **fields})


def test_latency_is_fixed_for_a_block_and_spread_over_the_range() -> None:
    drawn = [latency(f"print({number})", 0.05, 2.0) for number in range(2000)]
    assert latency("print(7)", 0.05, 2.0) == drawn[7] == latency("\nprint(7) ", 0.05, 2.0)
    assert 0.05 <= min(drawn) < 0.06
    assert 1.8 < max(drawn) <= 2.0
    below = sum(value < (0.05 * 2.0) ** 0.5 for value in drawn)
    assert 0.45 < below / len(drawn) < 0.55  # log-uniform: half of them below the geometric mean


async def test_blocks_sleep_in_the_sandbox_and_stay_the_same_otherwise() -> None:
    seen: list[str] = []

    def run(blocks: list[str]) -> ExecutionResult:
        seen.extend(blocks)
        return ExecutionResult("", "", "ok", 0.0, 0.0)

    sandbox = SlowBlocks(ScriptedSandbox(run), shortest=0.05, longest=2.0)
    session = sandbox.session(SessionLimits())
    code = "def f():\n    return 1\nf()"
    await session.invoke(code)
    await session.flush()
    [script] = seen
    assert script.endswith(f"\n{code}")
    expected = f"__import__('time').sleep({latency(code, 0.05, 2.0):.3f})"
    assert ast.unparse(ast.parse(script).body[0]) == expected


def test_every_way_comes_first_in_turn() -> None:
    ways = [Way(name, "", eager=False) for name in "abc"]
    orders = ["".join(way.name for way in rotated(ways, turn)) for turn in range(3)]
    assert orders == ["abc", "bca", "cab"]


def test_ratio_of_sums_with_an_interval() -> None:
    one = [measured(0, 2.0), measured(1, 6.0), measured(1, 2.0)]
    other = [measured(0, 4.0), measured(1, 8.0), measured(1, 8.0)]
    value, low, high = ratio(one, other, "seconds")
    assert value == pytest.approx(0.5)
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(0.5)
    assert ratio([measured(0, 1.0)], [measured(0, 2.0)], "seconds")[0] == 0.5


def test_table_and_comparison() -> None:
    found = {
        "immediate": [measured(0, 8.0, by_model=0, delayed=0), measured(1, 8.0, by_model=0, delayed=0)],
        "delayed": [measured(0, 4.0), measured(1, 4.0, right=False)],
        "delayed, eager": [measured(0, 2.0), measured(1, 2.0, text="b", errors=("error",))],
    }
    rows = [line.split(" | ") for line in table(found, dict.fromkeys(found, 60.0)).splitlines()]
    assert rows[0][-1] == "episodes/min |"
    assert rows[2][1:6] == ["8.00", "100", "2.00", "4.00", "-"]
    assert rows[3][5] == "25%"
    assert rows[3][-2:] == ["1 of 2", "2.0 |"]
    assert rows[4][10] == "1"
    text = comparison(found)
    assert "- delayed / immediate: wall time 0.50 (0.50 to 0.50), without container waits 0.49" in text
    assert "tokens 1.00 (1.00 to 1.00)" in text
    assert "- delayed, eager / delayed: wall time 0.50" in text
    assert "- 1 of 2 delayed episodes have the same text" in text
