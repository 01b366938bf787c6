"""The module ``tools`` that code imports: one function per tool, which asks the supervisor to make the call.

Every call has its own pair of connected sockets, one of which goes to the supervisor with a packet on the
control socket. So threads and forked processes can call tools at the same time, and an idle namespace holds
no socket. A request is three numbers (u32, big
endian: see ``TOOL_REQUEST``), the name, and the arguments as JSON; a reply is a byte
(1 for success), a length, and JSON. Nothing is ever unpickled or evaluated.
"""

from __future__ import annotations

import array
import inspect
import json
import keyword
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

from .protocol import (
    CALL_DENIED,
    CALL_OK,
    MAX_ARGUMENT_BYTES,
    MAX_OPEN_CALLS,
    TOOL_CALL,
    TOOL_REPLY,
    TOOL_REQUEST,
)

# Code may replace these functions in their modules.
_dumps, _loads, _socketpair = json.dumps, json.loads, socket.socketpair
_REQUEST, _REPLY = struct.Struct(TOOL_REQUEST), struct.Struct(TOOL_REPLY)


class CodeToolError(Exception):
    """A tool failed, or could not be called. The message is the tool's own."""


class CodeToolDeniedError(CodeToolError):
    """The call was denied, or not approved in time. It was not made."""


for _error, _name in ((CodeToolError, "ToolError"), (CodeToolDeniedError, "ToolDeniedError")):
    _error.__module__, _error.__name__, _error.__qualname__ = "tools", _name, _name


class BoundCall:
    """A tool with its arguments, for ``gather``."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.name = name
        self.arguments = arguments

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}.bind({given})"


class _Annotation:
    """An annotation that is shown as the given text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class ToolsModule:
    """Builds the module from the tools of the session.

    Args:
        control: returns the control socket.
    """

    def __init__(self, control: Callable[[], socket.socket]) -> None:
        self._control = control
        self._built: tuple[list[dict[str, Any]], dict[str, Any]] | None = None
        self._module = ModuleType("tools")

    def install(self, stubs: list[dict[str, Any]]) -> None:
        """Make ``stubs`` importable, and earlier ones not. See ``service.tools.stubs`` for their form."""
        if not stubs:
            if self._built is not None and sys.modules.get("tools") is self._module:
                del sys.modules["tools"]  # of an earlier request
            return
        if self._built is None or self._built[0] != stubs:
            functions = {stub["name"]: self._function(stub) for stub in stubs}
            errors = {"ToolError": CodeToolError, "ToolDeniedError": CodeToolDeniedError}
            content = {**functions, "gather": self._gather, **errors}
            self._built = stubs, {**content, "__all__": list(content)}
            self._module = ModuleType("tools", "Functions that are available to this code.")
        self._module.__dict__.update(self._built[1])  # code may have replaced some
        sys.modules["tools"] = self._module

    def _function(self, stub: dict[str, Any]) -> Callable[..., Any]:
        name = stub["name"]
        signature = _signature(stub)
        nullable = {parameter["name"] for parameter in stub["parameters"] if parameter["omit_none"]}

        def bind(*args: Any, **kwargs: Any) -> BoundCall:
            """Return the call with these arguments, for ``gather``."""
            try:
                given = dict(signature.bind(*args, **kwargs).arguments)
            except TypeError as error:
                raise TypeError(f"{name}() {error}") from None
            given |= given.pop("more", {})
            return BoundCall(name, {k: v for k, v in given.items() if v is not None or k not in nullable})

        def call(*args: Any, **kwargs: Any) -> Any:
            [outcome] = self._run([bind(*args, **kwargs)])
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        call.__name__ = call.__qualname__ = name
        call.__module__, call.__doc__ = "tools", stub["doc"]
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.bind = bind  # type: ignore[attr-defined]
        return call

    def _gather(self, *calls: Any, return_exceptions: bool = False) -> list[Any]:
        """Make several calls at the same time and return their results in order.

        Args:
            calls: ``tool.bind(...)`` or ``functools.partial(tool, ...)``, or one iterable of them.
            return_exceptions: put the error of a failed call into the result. Otherwise the first error is
                raised once all calls have ended.
        """
        outcomes = self._run([_bound(call) for call in _each(calls)])
        if not return_exceptions:
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
        return outcomes

    def _run(self, calls: list[BoundCall]) -> list[Any]:
        """Make ``calls``, at most ``MAX_OPEN_CALLS`` at a time; return values and errors in order."""
        encoded = [_encode(call) for call in calls]
        outcomes: list[Any] = []
        open_calls: list[socket.socket] = []
        try:
            for at, (name, arguments) in enumerate(encoded):
                if len(open_calls) == MAX_OPEN_CALLS:
                    outcomes.append(_receive(open_calls.pop(0)))
                following = min(len(encoded) - at, MAX_OPEN_CALLS - len(open_calls)) - 1
                head = _REQUEST.pack(len(name), len(arguments), following)
                open_calls.append(self._send(head + name + arguments))
            while open_calls:
                outcomes.append(_receive(open_calls.pop(0)))
        finally:
            for connection in open_calls:
                connection.close()
        return outcomes

    def _send(self, request: bytes) -> socket.socket:
        ours, theirs = _socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
            self._control().sendmsg([TOOL_CALL], rights)
            ours.sendall(request, socket.MSG_NOSIGNAL)
        except OSError as error:
            ours.close()
            raise CodeToolError("tools can't be called here: the connection to them is closed") from error
        finally:
            theirs.close()
        return ours


def _bound(call: Any) -> BoundCall:
    if isinstance(call, BoundCall):
        return call
    bind = getattr(call.func, "bind", None) if isinstance(call, partial) else None
    if bind is None:
        raise TypeError("gather() takes tool.bind(...) or functools.partial(tool, ...)")
    bound = bind(*call.args, **call.keywords)
    if not isinstance(bound, BoundCall):
        raise TypeError("gather() takes calls of tools only")
    return bound


def _each(calls: tuple[Any, ...]) -> Iterable[Any]:
    if len(calls) == 1 and not isinstance(calls[0], BoundCall | partial):
        return tuple(calls[0])
    return calls


def _signature(stub: dict[str, Any]) -> inspect.Signature:
    parameters = []
    for parameter in stub["parameters"]:
        name = parameter["name"]
        if not name.isidentifier() or keyword.iskeyword(name) or name == "more":
            continue  # can be given in a dict: f(**{"from": ...})
        default = inspect.Parameter.empty if parameter["required"] else parameter["default"]
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=default,
                annotation=_Annotation(parameter["annotation"]),
            )
        )
    if stub["more"]:
        parameters.append(inspect.Parameter("more", inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters, return_annotation=_Annotation(stub["returns"]))


def _encode(call: BoundCall) -> tuple[bytes, bytes]:
    """Return the name and the arguments of a call."""
    try:
        arguments = _dumps(call.arguments, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CodeToolError(f"{call.name}(): the arguments can't be sent as JSON: {error}") from None
    if len(arguments) > MAX_ARGUMENT_BYTES:
        raise CodeToolError(f"{call.name}(): the arguments are larger than {MAX_ARGUMENT_BYTES} bytes")
    return call.name.encode(), arguments


def _receive(connection: socket.socket) -> Any:
    """Return the result of a call, or its error."""
    try:
        with connection:
            state, size = _REPLY.unpack(_exactly(connection, _REPLY.size))
            value = _loads(_exactly(connection, size))
    except (OSError, EOFError):
        return CodeToolError("the call was given up")
    except (ValueError, RecursionError) as error:
        return CodeToolError(f"the result can't be read: {error}")
    if state == CALL_OK:
        return value
    return CodeToolDeniedError(value) if state == CALL_DENIED else CodeToolError(value)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(min(size - len(data), 1 << 16))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)
