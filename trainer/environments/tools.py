"""Tools of a training run or an evaluation: Python functions and MCP servers that the model's code calls.

They are called by the same code as the tools of a served request, see ``service.tools``. So an episode of a
rollout is the episode that a server would run. `trainer.environments.settings` describes the recipe's part.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.tools.base import MAX_ERROR_CHARS, ToolError, ToolSpec
from service.tools.mcp.connection import McpServer
from service.tools.mcp.hub import McpHub, McpServerError
from service.tools.stubs import identifier, listing
from service.tools.toolset import Tool, ToolSet
from trainer.environments.settings import ToolSettings
from trainer.rewards.registry import ImportPathError, import_object

Run = Callable[[dict[str, Any], str], Awaitable[object]]


class ToolConfigError(ValueError):
    """A tool cannot be used; the message names the field and gives a hint."""


class RolloutTools:
    """The tools of a run: a `ToolHost`, and a part of the run that is started and stopped.

    Args:
        settings: the recipe's tools.

    Raises:
        ToolConfigError: a function cannot be imported or described.
    """

    def __init__(self, settings: Sequence[ToolSettings]) -> None:
        self._functions = [function_tool(entry) for entry in settings if entry.function is not None]
        servers = {
            f"server{number}": entry for number, entry in enumerate(settings) if entry.mcp_server is not None
        }
        self._settings = servers
        self._hub = McpHub(
            [_server(label, entry) for label, entry in servers.items()],
            always=tuple(servers),
        )
        self._tools = ToolSet(())

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools, once started."""
        return self._tools.specs

    async def start(self) -> None:
        """Connect to the servers.

        Raises:
            ToolConfigError: a server is unreachable, or two tools have the same name.
        """
        try:
            offered = await self._hub.open(())
        except McpServerError as error:
            command = self._settings[error.label].mcp_server
            raise ToolConfigError(f"tools: the MCP server {command!r} {error}") from None
        of_servers = []
        if offered is not None:
            for tool in offered.tools:
                entry = self._settings[offered.origins[tool.spec.name][0]]
                of_servers.append(_tool(tool.spec, tool.run, entry))
        try:
            self._tools = ToolSet([*self._functions, *of_servers])
        except ValueError as error:
            raise ToolConfigError(f"tools: {error}") from None

    async def call(self, name: str, arguments: dict[str, Any], call_id: str) -> object:
        """Run a tool; see `service.tools.base.ToolHost`."""
        return await self._tools.call(name, arguments, call_id)

    async def stop(self) -> None:
        """Close the connections to the servers."""
        await self._hub.stop()


def make_tools(settings: Sequence[ToolSettings]) -> RolloutTools | None:
    """Return the tools of a run, not started; None without tools. Raises as `RolloutTools`."""
    return RolloutTools(settings) if settings else None


def prompt_section(settings: Sequence[ToolSettings]) -> str:
    """Return the text that lists the tools in prompts; empty without tools. Asks the MCP servers for theirs.

    Raises:
        ToolConfigError: a tool cannot be used.
    """

    async def listed() -> str:
        tools = RolloutTools(settings)
        try:
            await tools.start()
            return listing(tools.specs)
        finally:
            await tools.stop()

    return asyncio.run(listed()) if settings else ""


def function_tool(settings: ToolSettings) -> Tool:
    """Return the tool of a Python function.

    Raises:
        ToolConfigError: it cannot be imported, or lacks type hints or documented arguments.
    """
    path = settings.function or ""
    try:
        function = import_object(path)
    except ImportPathError as error:
        raise ToolConfigError(f"tools.function: {error}") from None
    if not callable(function):
        raise ToolConfigError(f"tools.function: {path} is not a function")
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    try:
        described = get_json_schema(function)["function"]
    except (DocstringParsingException, TypeHintParsingException, ValueError) as error:
        raise ToolConfigError(
            f"tools.function: {path} cannot be described: {error}. hint: give each argument a type hint and "
            f"a line in the docstring's section 'Args:'"
        ) from None
    output = described.get("return")
    spec = ToolSpec(
        identifier(described["name"]),
        described.get("description", ""),
        described["parameters"],
        None if output is None else {key: value for key, value in output.items() if key != "description"},
        read_only=settings.read_only,
    )

    async def run(arguments: dict[str, Any], call_id: str) -> object:
        del call_id
        try:
            if inspect.iscoroutinefunction(function):
                result = await function(**arguments)
            else:
                result = await asyncio.to_thread(function, **arguments)
        except ToolError:
            raise
        except Exception as error:
            raise ToolError(f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]) from error
        try:
            json.dumps(result, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ToolError(f"{spec.name}() returned an invalid result: it is not a JSON value") from None
        return result

    return _tool(spec, run, settings)


def _tool(spec: ToolSpec, run: Run, settings: ToolSettings) -> Tool:
    async def delayed(arguments: dict[str, Any], call_id: str) -> object:
        await asyncio.sleep(settings.latency_s)
        return await run(arguments, call_id)

    return Tool(spec, delayed if settings.latency_s else run, settings.timeout_s)


def _server(label: str, settings: ToolSettings) -> McpServer:
    address = settings.mcp_server or ""
    is_url = address.startswith(("http://", "https://"))
    return McpServer(
        label,
        url=address if is_url else None,
        command=() if is_url else tuple(shlex.split(address)),
        allowed_tools=None if settings.allowed_tools is None else frozenset(settings.allowed_tools),
        read_only=settings.read_only,
    )
