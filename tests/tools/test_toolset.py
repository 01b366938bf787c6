from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.tools.base import ToolError, ToolSpec
from service.tools.toolset import Tool, ToolSet

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


async def double(arguments: dict[str, Any], call_id: str) -> object:
    return "text" if arguments["n"] < 0 else 2 * arguments["n"]


async def sleep(arguments: dict[str, Any], call_id: str) -> object:
    await asyncio.sleep(60)
    return None


@pytest.fixture
def tools() -> ToolSet:
    return ToolSet(
        [
            Tool(ToolSpec("double", parameters=SCHEMA, output={"type": "integer"}), double),
            Tool(ToolSpec("sleep"), sleep),
        ],
        timeout_s=0.05,
    )


async def test_valid_calls_run(tools: ToolSet) -> None:
    assert await tools.call("double", {"n": 4}, "id") == 8


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("double", {}, r'double\(\): "n" is a required property'),
        ("double", {"n": "x"}, r'double\(\): "x" is not of type "integer" at \["n"\]'),
        ("double", {"n": -1}, r"double\(\) returned an invalid result"),
        ("sleep", {}, r"sleep\(\) did not answer within 0.05 seconds"),
        ("other", {}, "there is no tool 'other'"),
    ],
)
async def test_invalid_calls_are_errors(
    tools: ToolSet, name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ToolError, match=message):
        await tools.call(name, arguments, "id")


def test_invalid_tools_are_rejected() -> None:
    with pytest.raises(ValueError, match="same name"):
        ToolSet([Tool(ToolSpec("a"), double), Tool(ToolSpec("a"), double)])
    with pytest.raises(ValueError, match="nonsense"):
        ToolSet([Tool(ToolSpec("a", parameters={"type": "nonsense"}), double)])
