"""Functions that the client of the API runs, as tools of code: a call waits for a later request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from service.tools.base import ToolError, ToolSpec
from service.tools.stubs import identifier
from service.tools.toolset import Tool


@dataclass(frozen=True, slots=True)
class ClientFunction:
    """A function of the client that code may call."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of the arguments."""
    output: dict[str, Any] | None = None
    """JSON schema of the result, which the client sends as JSON; None if it is text."""

    def tool(self, calls: ClientCalls) -> Tool:
        """Return the tool whose calls wait in ``calls``."""
        name = identifier(self.name, calls.names)
        spec = ToolSpec(name, self.description, self.parameters, self.output, by_client=True)
        return calls.tool(spec, self.name)


class ClientCalls:
    """The calls of one session that the client runs."""

    def __init__(self) -> None:
        self._open: dict[str, asyncio.Future[str]] = {}
        self.names: dict[str, str] = {}
        """Name of each function for the client, by its name in Python."""

    def tool(self, spec: ToolSpec, name: str) -> Tool:
        """Return the tool of a function.

        Args:
            spec: the function, as code sees it.
            name: its name for the client.
        """
        self.names[spec.name] = name
        return Tool(spec, partial(self._run, spec))

    async def _run(self, spec: ToolSpec, _arguments: dict[str, Any], call_id: str) -> object:
        result = self._open[call_id] = asyncio.get_running_loop().create_future()
        try:
            text = await result
        finally:
            del self._open[call_id]
        if spec.output is None:
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise ToolError(f"{spec.name}(): the client's output is not JSON") from None

    def answer(self, outputs: Mapping[str, str], failed: Collection[str] = ()) -> None:
        """Return the client's outputs to the code.

        Args:
            outputs: by the id of the call. Other ids are ignored.
            failed: ids of the calls whose output is the message of an error.
        """
        for call_id, output in outputs.items():
            future = self._open.get(call_id)
            if future is None or future.done():
                continue
            if call_id in failed:
                future.set_exception(ToolError(output))
            else:
                future.set_result(output)
