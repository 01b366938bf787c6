"""The tools of one session, from one or several sources, with validated arguments and results."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from service.common.json import compile_schema, first_error
from service.tools.base import ToolError, ToolSpec

CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool and the function that runs it."""

    spec: ToolSpec
    run: Callable[[dict[str, Any], str], Awaitable[object]]
    """Called with valid arguments and the id of the call. Returns a JSON value or raises ToolError."""
    timeout_s: float | None = None
    """Longest time of one call, in seconds. None for that of the set."""


class ToolSet:
    """A `ToolHost` of several tools.

    Args:
        tools: the tools; their names differ.
        timeout_s: longest time of one call, in seconds. Tools that the client runs have none.

    Raises:
        ValueError: two tools have the same name, or a schema is not valid.
    """

    def __init__(self, tools: Iterable[Tool], *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        listed = list(tools)
        self._tools = {tool.spec.name: tool for tool in listed}
        if len(self._tools) != len(listed):
            raise ValueError("two tools have the same name")
        self._timeout_s = timeout_s
        self.tools = tuple(listed)
        self.specs = tuple(tool.spec for tool in listed)
        self._arguments = {spec.name: compile_schema(spec.parameters) for spec in self.specs}
        self._results = {
            spec.name: compile_schema(spec.output) for spec in self.specs if spec.output is not None
        }

    def error_in(self, name: str, arguments: dict[str, Any]) -> str | None:
        """Return the error in the arguments of a call; None if they are valid."""
        return None if name not in self._tools else first_error(self._arguments[name], arguments)

    async def call(self, name: str, arguments: dict[str, Any], call_id: str) -> object:
        """Validate the arguments, run the tool and validate the result. See `ToolHost`."""
        tool = self._tools.get(name)
        if tool is None:
            raise ToolError(f"there is no tool {name[:64]!r}")
        if (error := first_error(self._arguments[name], arguments)) is not None:
            raise ToolError(f"{name}(): {error}")
        limit = self._timeout_s if tool.timeout_s is None else tool.timeout_s
        try:
            async with asyncio.timeout(None if tool.spec.by_client else limit):
                result = await tool.run(arguments, call_id)
        except TimeoutError:
            raise ToolError(f"{name}() did not answer within {limit:g} seconds") from None
        if name in self._results and (error := first_error(self._results[name], result)) is not None:
            raise ToolError(f"{name}() returned an invalid result: {error}")
        return result
