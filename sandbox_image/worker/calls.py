"""Tool calls, seen from the supervisor: it passes them on to the owner and the results back to the code.

Code is not trusted. It may send anything on the sockets, or nothing, or keep them open. The supervisor never
waits for it, bounds what it reads, and does not look into arguments or results.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from .protocol import MAX_ARGUMENT_BYTES, MAX_NAME_BYTES, MAX_OPEN_CALLS, TOOL_REPLY, TOOL_REQUEST

_CHUNK_BYTES = 1 << 16
_REQUEST = struct.Struct(TOOL_REQUEST)
_REPLY = struct.Struct(TOOL_REPLY)


class RunClock:
    """Time limit of a script that stops while the script waits for tools.

    Args:
        seconds: time to run.
        tool_seconds: time to wait for tools. A call that is held until the flush waits without limit, and so
            does a script that is suspended.
    """

    def __init__(self, seconds: float, tool_seconds: float) -> None:
        unlimited = float("inf")
        self.left = {"run": seconds, "tools": tool_seconds, "held": unlimited, "suspended": unlimited}
        self.used = dict.fromkeys(self.left, 0.0)
        self._state = "run"
        self._since = 0.0
        self._timeout: asyncio.Timeout | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Count the time inside. Raises TimeoutError if a limit is reached."""
        self._since = self._now()
        try:
            async with asyncio.timeout(self._left()) as self._timeout:
                yield
        finally:
            self._timeout = None
            self._settle()

    def switch(self, state: str) -> None:
        """Count time as ``run``, ``tools``, ``held`` or ``suspended`` from now on."""
        if self._timeout is not None:
            self._settle()
            self._state = state
            left = self._left()
            with contextlib.suppress(RuntimeError):  # it has expired already
                self._timeout.reschedule(None if left is None else self._now() + left)
        self._state = state

    def _left(self) -> float | None:
        left = self.left[self._state]
        return None if left == float("inf") else left

    def _settle(self) -> None:
        now = self._now()
        self.left[self._state] -= now - self._since
        self.used[self._state] += now - self._since
        self._since = now

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


@dataclass(frozen=True)
class ToolConfig:
    """The tools of a session, from its ``open`` frame."""

    stubs: list[dict[str, Any]]
    """See ``service.tools.stubs``."""
    read_only: frozenset[str]
    """Names of the tools that may be called before the flush."""
    announced: frozenset[str]
    """Names of the tools whose calls are reported while they are held."""
    max_calls: int
    """Highest number of calls of one flush."""
    wait_s: float
    """Time that a flush may wait for tools, in seconds."""

    @property
    def have_effects(self) -> bool:
        return any(stub["name"] not in self.read_only for stub in self.stubs)


NO_TOOLS = ToolConfig([], frozenset(), frozenset(), 0, 0.0)


class CallRelay:
    """The calls of one run of a script. ``close`` ends them; results that come later are lost.

    Args:
        tools: the session's tools.
        send: sends a frame to the owner.
        ids: returns the next free number of a call.
        attempt: 1, or 2 if the blocks run again as one script.
        released: calls with side effects need not wait, because the flush was requested.
        on_state: called with ``tools`` if the script waits for tools, ``held`` if it waits for the flush,
            ``suspended`` if the owner has suspended it, and ``run`` otherwise.
    """

    def __init__(
        self,
        tools: ToolConfig,
        send: Callable[[dict[str, Any]], None],
        ids: Callable[[], int],
        *,
        attempt: int,
        released: bool,
        on_state: Callable[[str], None],
    ) -> None:
        self._tools = tools
        self._send = send
        self._ids = ids
        self._attempt = attempt
        self._released = released
        self._on_state = on_state
        self._connections: set[_Connection] = set()
        self._sent: dict[int, _Connection] = {}
        self._held: list[tuple[int, _Connection, str, str, int]] = []
        self._count = 0
        self.state = "run"
        self._suspended = False
        self._closed = False

    def accept(self, fd: int) -> None:
        """Take a socket from the code. It is closed if it is not a connected stream, or one too many."""
        if self._closed or len(self._connections) >= 2 * MAX_OPEN_CALLS:
            os.close(fd)
            return
        try:
            connection = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            return
        if (connection.family, connection.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            connection.close()
            return
        self._connections.add(_Connection(connection, self._request, self._gone))

    def _request(self, connection: _Connection, name: str, arguments: str, following: int) -> None:
        self._count += 1
        if self._count > self._tools.max_calls:
            connection.reply(False, f"more than {self._tools.max_calls} calls of tools in one run")
        elif len(self._sent) + len(self._held) >= MAX_OPEN_CALLS:
            connection.reply(False, f"more than {MAX_OPEN_CALLS} calls of tools at the same time")
        elif self._released or name in self._tools.read_only:
            self._forward(self._ids(), connection, name, arguments, following)
        else:
            number = self._ids()
            self._held.append((number, connection, name, arguments, following))
            if name in self._tools.announced:
                self._send({"op": "tool_held", "id": number, "name": name, "arguments": arguments})
        self._update()

    def _forward(
        self, number: int, connection: _Connection, name: str, arguments: str, following: int
    ) -> None:
        self._sent[number] = connection
        self._send(
            {
                "op": "tool_call",
                "id": number,
                "attempt": self._attempt,
                "name": name,
                "arguments": arguments,
                "following": min(following, MAX_OPEN_CALLS - 1),
            }
        )

    def release(self) -> None:
        """Pass on the calls that were held: the flush was requested."""
        self._released = True
        waiting, self._held = self._held, []
        for call in waiting:
            self._forward(*call)
        self._update()

    def suspend(self) -> None:
        """Stop the script until ``resume``. Results of calls may arrive meanwhile."""
        self._suspended = True
        self._update()

    def resume(self) -> None:
        """Undo ``suspend``."""
        self._suspended = False
        self._update()

    def answer(self, number: int, state: int, value: str) -> None:
        """Pass on a result. ``value`` is JSON. Results of calls that were given up are ignored.

        Args:
            number: of the call.
            state: see ``TOOL_REPLY``.
            value: the result, or the message of the error.
        """
        if (connection := self._sent.pop(number, None)) is not None:
            connection.reply_json(state, value)
            self._update()

    def _gone(self, connection: _Connection) -> None:
        """Forget a connection. If its call was passed on already, the result is lost."""
        self._connections.discard(connection)
        self._sent = {number: other for number, other in self._sent.items() if other is not connection}
        self._held = [entry for entry in self._held if entry[1] is not connection]
        self._update()

    def _update(self) -> None:
        state = "held" if self._held else "tools" if self._sent else "run"
        state = "suspended" if self._suspended else state
        if state != self.state and not self._closed:
            self.state = state
            self._on_state(state)

    def close(self) -> None:
        self._closed = True
        for connection in tuple(self._connections):
            connection.close()


class _Connection:
    """The socket of one call. Code shares it, so no operation may rely on its flags."""

    def __init__(
        self,
        connection: socket.socket,
        on_request: Callable[[_Connection, str, str, int], None],
        on_close: Callable[[_Connection], None],
    ) -> None:
        self._socket = connection
        self._on_request = on_request
        self._on_close = on_close
        self._data = bytearray()
        self._reply = memoryview(b"")
        self._is_requested = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection, self._read)

    def _read(self) -> None:
        try:
            chunk = self._socket.recv(_CHUNK_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk or self._is_requested:  # nothing may follow a request
            self.close()
            return
        self._data += chunk
        if len(self._data) < _REQUEST.size:
            return
        name_size, size, following = _REQUEST.unpack_from(self._data)
        whole = _REQUEST.size + name_size + size
        if name_size > MAX_NAME_BYTES or size > MAX_ARGUMENT_BYTES or len(self._data) > whole:
            self.close()
        elif len(self._data) == whole:
            data, self._data = bytes(self._data), bytearray()
            self._is_requested = True
            try:
                name = data[_REQUEST.size : _REQUEST.size + name_size].decode()
                arguments = data[_REQUEST.size + name_size :].decode()
            except UnicodeDecodeError:
                self.close()
            else:
                self._on_request(self, name, arguments, following)

    def reply(self, ok: bool, text: str) -> None:
        self.reply_json(ok, json.dumps(text))

    def reply_json(self, state: int, value: str) -> None:
        if self._socket.fileno() < 0:
            return
        data = value.encode()
        self._reply = memoryview(_REPLY.pack(state, len(data)) + data)
        self._loop.add_writer(self._socket, self._write)

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._reply, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._reply = self._reply[sent:]
        if not self._reply:
            self.close()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._on_close(self)
