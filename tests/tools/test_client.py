from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.tools.base import ToolError, ToolSpec
from service.tools.client import ClientCalls, ClientFunction
from service.tools.toolset import ToolSet

CITY: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def opened(*functions: ClientFunction) -> tuple[ClientCalls, ToolSet]:
    calls = ClientCalls()
    return calls, ToolSet([function.tool(calls) for function in functions], timeout_s=0.01)


async def asked(tools: ToolSet, name: str, call_id: str) -> asyncio.Task[object]:
    task = asyncio.create_task(tools.call(name, {"city": "Ulm"}, call_id))
    await asyncio.sleep(0.05)  # longer than other tools may take
    return task


async def test_call_waits_for_the_output() -> None:
    calls, tools = opened(ClientFunction("weather", "", CITY))
    task = await asked(tools, "weather", "a")
    calls.answer({"b": "other", "a": "rain"})
    assert await task == "rain"
    calls.answer({"a": "again"})  # it has ended


async def test_failed_call_is_an_error() -> None:
    calls, tools = opened(ClientFunction("weather", "", CITY, {"type": "number"}))
    task = await asked(tools, "weather", "a")
    calls.answer({"a": "no such city"}, failed={"a"})
    with pytest.raises(ToolError, match=r"^no such city$"):
        await task


async def test_output_with_a_schema_is_a_value() -> None:
    calls, tools = opened(ClientFunction("weather", "", CITY, {"type": "number"}))
    for text, expected in (("3", 3), ("x", "is not JSON"), ('"x"', "invalid result")):
        task = await asked(tools, "weather", "a")
        calls.answer({"a": text})
        if isinstance(expected, int):
            assert await task == expected
            continue
        with pytest.raises(ToolError, match=expected):
            await task


async def test_names_are_adapted_to_python() -> None:
    calls, tools = opened(ClientFunction("get-sum", "", CITY), ClientFunction("get_sum", "", CITY))
    assert calls.names == {"get_sum": "get-sum", "get_sum_2": "get_sum"}
    assert all(isinstance(spec, ToolSpec) and spec.by_client and not spec.read_only for spec in tools.specs)


async def test_cancelled_call_can_not_be_answered() -> None:
    calls, tools = opened(ClientFunction("weather", "", CITY))
    task = await asked(tools, "weather", "a")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    calls.answer({"a": "rain"})
