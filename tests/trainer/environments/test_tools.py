from __future__ import annotations

import asyncio
import shlex
import sys
from pathlib import Path

import pytest

from service.tools.base import ToolError
from trainer.environments.settings import ToolSettings
from trainer.environments.tools import (
    RolloutTools,
    ToolConfigError,
    function_tool,
    make_tools,
    prompt_section,
)

HERE = "tests.trainer.environments.test_tools"


def lengths(words: list[str], minimum: int = 0) -> list[int]:
    """Count letters.

    Args:
        words: The words.
        minimum: Leave out shorter words.

    Returns:
        The counts.
    """
    return [len(word) for word in words if len(word) >= minimum]


async def upper(text: str) -> str:
    """Write in capitals.

    Args:
        text: Any text.
    """
    await asyncio.sleep(0)
    return text.upper()


def picky(text: str) -> str:
    """Reject everything.

    Args:
        text: Any text.
    """
    raise LookupError(f"no {text} here")


def unusable(text: str) -> object:
    """Return what is not JSON.

    Args:
        text: Any text.
    """
    return {1, 2, text}


async def hangs(text: str) -> str:
    """Wait forever.

    Args:
        text: Any text.
    """
    await asyncio.Event().wait()
    return text


def undocumented(text: str) -> str:
    return text


def without_hints(text):  # type: ignore[no-untyped-def]
    """Has no type hints.

    Args:
        text: Any text.
    """
    return text


NOT_A_FUNCTION = 3


def tool(name: str, **values: object) -> ToolSettings:
    return ToolSettings.model_validate({"function": f"{HERE}:{name}", **values})


async def started(*settings: ToolSettings) -> RolloutTools:
    tools = RolloutTools(settings)
    await tools.start()
    return tools


def test_a_function_is_described_by_its_hints_and_docstring() -> None:
    spec = function_tool(tool("lengths", read_only=True)).spec
    assert (spec.name, spec.description, spec.read_only) == ("lengths", "Count letters.", True)
    assert spec.parameters["required"] == ["words"]
    assert spec.parameters["properties"]["minimum"]["type"] == "integer"
    assert spec.output == {"type": "array", "items": {"type": "integer"}}


async def test_functions_are_called_with_validated_arguments() -> None:
    tools = await started(tool("lengths"), tool("upper"))
    assert await tools.call("lengths", {"words": ["a", "bcd"], "minimum": 2}, "1") == [3]
    assert await tools.call("upper", {"text": "a"}, "2") == "A"
    with pytest.raises(ToolError, match="words"):
        await tools.call("lengths", {"words": 7}, "3")
    with pytest.raises(ToolError, match="there is no tool 'other'"):
        await tools.call("other", {}, "4")
    await tools.stop()


async def test_errors_of_a_function_reach_the_code() -> None:
    tools = await started(tool("picky"), tool("hangs", timeout_s=0.05))
    with pytest.raises(ToolError, match="LookupError: no luck here"):
        await tools.call("picky", {"text": "luck"}, "1")
    with pytest.raises(ToolError, match=r"hangs\(\) did not answer within 0.05 seconds"):
        await tools.call("hangs", {"text": "x"}, "2")


async def test_latency_is_part_of_the_time_limit() -> None:
    tools = await started(tool("upper", latency_s=30, timeout_s=0.05))
    with pytest.raises(ToolError, match="did not answer"):
        await tools.call("upper", {"text": "a"}, "1")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("undocumented", "cannot be described.*hint: give each argument a type hint"),
        ("without_hints", "cannot be described"),
        ("NOT_A_FUNCTION", "is not a function"),
        ("lenghts", "Did you mean 'lengths'"),
    ],
)
def test_a_function_that_cannot_be_used_is_explained(path: str, message: str) -> None:
    with pytest.raises(ToolConfigError, match=f"tools.function: .*{message}"):
        RolloutTools([tool(path)])


def test_a_missing_module_is_explained() -> None:
    with pytest.raises(ToolConfigError, match="cannot import module 'no_such_module'"):
        RolloutTools([ToolSettings(function="no_such_module:f")])


async def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ToolConfigError, match="two tools have the same name"):
        await started(tool("upper"), tool("upper"))


async def test_tools_of_an_mcp_server() -> None:
    command = shlex.join([sys.executable, "-m", "tests.support.mcp_server"])
    tools = await started(
        ToolSettings(mcp_server=command, allowed_tools=("add",), read_only=True), tool("upper")
    )
    try:
        assert sorted((spec.name, spec.read_only) for spec in tools.specs) == [
            ("add", True),
            ("upper", False),
        ]
        assert await tools.call("add", {"a": 2, "b": 3}, "1") == 5
    finally:
        await tools.stop()


async def test_a_server_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(ToolConfigError, match="the MCP server '/no/such/program'"):
        await started(ToolSettings(mcp_server="/no/such/program"))


def test_prompts_list_the_tools(tmp_path: Path) -> None:
    assert prompt_section(()) == ""
    text = prompt_section([tool("upper"), tool("lengths")])
    assert "def upper(text: str) -> str:" in text
    assert "def lengths(words: list[str], minimum: int" in text


def test_a_run_without_tools_has_no_host() -> None:
    assert make_tools(()) is None
