"""Tool interface: the specification of a tool, the host that runs calls, and errors.

A tool is a Python function in the namespace of the sandboxed code: ``from tools import search``. A call
travels over the worker's own channel to this process, where a `ToolHost` runs it. The sandbox still has no
network. ``service.tools.stubs`` describes the functions, ``service.sandbox.tool_calls`` receives the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

MAX_ARGUMENT_BYTES: Final = 1 << 16
"""Largest arguments of one call, in bytes of JSON. The worker has the same limit."""
MAX_ARGUMENT_DEPTH: Final = 64
"""Most levels of objects and lists in the arguments of one call. JSON parsers of clients have limits too."""
MAX_RESULT_BYTES: Final = 1 << 18
"""Largest result of one call, in bytes of JSON."""
CODE_CALL_PREFIX: Final = "call_code_"
"""Beginning of the ids of calls that code makes and the client runs. Other calls have other ids."""
MAX_ERROR_CHARS: Final = 4000
"""Longest message of an error that code is shown."""


def _no_arguments() -> dict[str, Any]:
    return {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One tool, as code sees it."""

    name: str
    """Name of the function: a Python identifier, unique among the tools of a session."""
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=_no_arguments)
    """JSON schema of the arguments, an object."""
    output: dict[str, Any] | None = None
    """JSON schema of the result; None if it is free text."""
    read_only: bool = False
    """The tool has no side effects, so a call may run before the flush, or for a block that is never
    flushed. Set by the operator or by the request, never by the server that offers the tool."""
    by_client: bool = False
    """The client of the API runs it, after the reply has ended. The code waits for the next request."""
    needs_approval: bool = False
    """The client must approve each call, whose arguments it sees. See `service.tools.approval`."""


class ToolError(Exception):
    """A tool failed or rejected its arguments. Code gets the message as an exception."""


class ToolDeniedError(ToolError):
    """The client has denied a call."""


class ToolHost(Protocol):
    """The tools of one session."""

    @property
    def specs(self) -> Sequence[ToolSpec]: ...

    async def call(self, name: str, arguments: dict[str, Any], call_id: str) -> object:
        """Run a tool and return its result, a JSON value.

        Args:
            name: name of one of the ``specs``.
            arguments: not validated yet.
            call_id: identifies the call. No id is used twice.

        Raises:
            ToolError: the tool failed, or the arguments or the result don't match the schema.
        """
        ...


@runtime_checkable
class AnnouncedTools(ToolHost, Protocol):
    """A host that wants to know calls before they are made, for tools with ``needs_approval``."""

    def announce(self, name: str, arguments: dict[str, Any]) -> None:
        """Note a call that code will make at the flush, unless it changes its mind."""
        ...
