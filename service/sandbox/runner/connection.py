"""Client side of one connection to the runner."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.protocol import State

from service.sandbox.base import OnOutput, SandboxError, SessionLimits
from service.sandbox.runner import protocol
from service.sandbox.runner.protocol import Address
from service.sandbox.session import Deadline
from service.sandbox.tool_calls import parse_arguments, run_tool
from service.tools.base import MAX_ERROR_CHARS, AnnouncedTools, ToolError, ToolHost

_HANDSHAKE_TIMEOUT_S = 5.0
_READ_AHEAD = 2 * protocol.MAX_AHEAD
"""Messages that wait to be received. More of them are left in the socket."""

R = TypeVar("R", bound=protocol.RunnerReply)


class UnreachableError(SandboxError):
    """The runner does not answer or accepts no connections now. A retry may succeed."""


class BusyError(UnreachableError):
    """The runner is draining, or has as many connections as it accepts."""


class ConnectionLostError(SandboxError):
    """The connection broke, which ended the session. The last request may or may not have been executed."""


class TooBigError(protocol.MessageError):
    """The request is larger than the runner accepts. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A runner's address and what a client needs to connect to it."""

    address: Address
    token: SecretStr
    ping_interval_s: float
    """Seconds between pings. A runner that does not answer one within this time is considered lost."""
    tls: ssl.SSLContext | None = None

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token.get_secret_value()}"}


class RunnerConnection:
    """Connection that holds one session. Replies come in order, and no request is sent twice."""

    def __init__(self, websocket: ClientConnection, tools: ToolHost | None = None) -> None:
        self.queue_timeout_s = 0.0
        """Time that the session may wait for its container, as granted by the runner."""
        self._websocket = websocket
        self._unanswered = 0
        self._deadline = Deadline()
        self._tools = None if tools is None else ToolRelay(websocket, tools)

    @classmethod
    async def open(
        cls, endpoint: Endpoint, limits: SessionLimits, tools: ToolHost | None = None
    ) -> tuple[RunnerConnection, SessionLimits]:
        """Connect, open a session, and return the connection and the limits that the runner grants.

        Raises:
            UnreachableError, ConnectionLostError: the runner does not answer. A retry is safe: no code was
                sent.
            SandboxError: the runner rejects the token, or its certificate can't be verified.
        """
        connection = cls(await _connect(endpoint), tools)
        request = protocol.OpenRequest(
            run_limit_s=limits.run_limit_s,
            eager=limits.eager,
            tool_wait_s=limits.tool_wait_s,
            tool_calls=limits.tool_calls,
            tools=() if tools is None else tuple(tools.specs),
            files=None if limits.figures is None else protocol.FileOptions(memory_mb=limits.memory_mb),
        )
        opened = await connection.request(request, protocol.OpenedReply, timeout_s=_HANDSHAKE_TIMEOUT_S)
        connection.queue_timeout_s = opened.queue_timeout_s
        return connection, replace(limits, run_limit_s=opened.run_limit_s, eager=opened.eager)

    @property
    def is_open(self) -> bool:
        """Whether the connection has not been closed, as far as is known."""
        return self._websocket.state is State.OPEN

    async def request(
        self,
        request: protocol.RunnerRequest,
        expected: type[R],
        *,
        timeout_s: float,
        on_output: OnOutput | None = None,
    ) -> R:
        """Send one request and wait for its reply. Live output that comes before it goes to ``on_output``.

        Raises:
            MessageError: the request is too big; nothing was sent.
            QueueFullError, QueueTimeoutError, DrainingError, SandboxError: the runner reported this error;
                the connection stays usable.
            ConnectionLostError: it broke, or no reply came within ``timeout_s``; the connection is dropped.
        """
        async with self._exchange(timeout_s):
            await self._send(request)
            await self._catch_up(1)
            reply = await self._receive(on_output)
        if isinstance(reply, protocol.FailedReply):
            raise protocol.failure(reply)
        if not isinstance(reply, expected):
            self.drop()
            raise ConnectionLostError(f"the runner replied {reply.type} to {request.type}")
        return reply

    def use_tools(self, tools: ToolHost | None) -> None:
        """Replace the tools that the code may call; None for none. No block may be pending."""
        if self._tools is not None:
            self._tools.use(tools)
        elif tools is not None:
            self._tools = ToolRelay(self._websocket, tools)

    async def suspend(self, on: bool) -> None:
        """Stop the code of the flush, or resume it. A broken connection is reported by the flush."""
        if not self._deadline.is_running:
            return
        if on:
            self._deadline.suspend()
        else:
            self._deadline.resume()
        with contextlib.suppress(ConnectionClosed):
            await self._websocket.send(protocol.encode(protocol.SuspendMessage(on=on)))

    def cancel_calls(self) -> None:
        """Cancel the calls of blocks that were dropped."""
        if self._tools is not None:
            self._tools.cancel_calls()

    async def put(
        self, request: protocol.PutRequest, content: AsyncIterator[bytes], *, timeout_s: float
    ) -> protocol.DoneReply:
        """Send an input and wait for the reply. Raises as `request`."""
        async with self._exchange(timeout_s):
            await self._send(request)
            left = request.size
            async for chunk in content:
                for start in range(0, len(chunk), protocol.CHUNK_BYTES):
                    await self._websocket.send(chunk[start : start + protocol.CHUNK_BYTES])
                left -= len(chunk)
            if left:
                raise ConnectionLostError(f"the input does not have {request.size} bytes")
            await self._catch_up(1)
            return self._done(await self._receive())

    async def read(self, request: protocol.ReadRequest, *, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """Yield the content that a read request returns. Raises as `request`.

        If the generator is closed before its end, it receives the rest.
        """
        async with self._exchange(timeout_s):
            await self._send(request)
            await self._catch_up(1)
            closed = False
            while isinstance(message := await self._next_message(), bytes):
                if not closed:
                    try:
                        yield message
                    except GeneratorExit:
                        closed = True
            self._unanswered -= 1
            self._done(message)

    def _done(self, reply: protocol.RunnerReply) -> protocol.DoneReply:
        if isinstance(reply, protocol.FailedReply):
            raise ConnectionLostError(reply.text)
        if not isinstance(reply, protocol.DoneReply):
            raise ConnectionLostError(f"the runner replied {reply.type}")
        return reply

    async def send_nowait(self, block: protocol.InvokeRequest, *, timeout_s: float) -> None:
        """Send another block to a leased container without waiting for the reply to it.

        Raises:
            MessageError: the block is too big; nothing was sent.
            ConnectionLostError: the connection broke, or an earlier block was rejected.
        """
        async with self._exchange(timeout_s):
            await self._send(block)
            await self._catch_up(protocol.MAX_AHEAD - 1)

    async def _send(self, request: protocol.RunnerRequest) -> None:
        frame = protocol.encode(request)
        if len(frame.encode()) > protocol.MAX_REQUEST_BYTES:
            raise TooBigError(
                f"the block is too big: the sandbox takes at most {protocol.MAX_REQUEST_BYTES} bytes"
            )
        await self._websocket.send(frame)
        self._unanswered += 1

    async def _receive(self, on_output: OnOutput | None = None) -> protocol.RunnerReply:
        while isinstance(reply := await self._next_message(), protocol.OutputMessage):
            if on_output is None:
                raise ConnectionLostError("the runner sent output that was not requested")
            on_output(reply.chunk)
        if isinstance(reply, bytes):
            raise ConnectionLostError("the runner sent binary data that was not requested")
        self._unanswered -= 1
        return reply

    async def _next_message(self) -> protocol.RunnerReply | bytes:
        """Return the next reply, or the next part of a file."""
        if self._tools is not None:
            return await self._tools.receive()
        return _decoded(await self._websocket.recv())

    async def _catch_up(self, unanswered: int) -> None:
        """Read replies to blocks until at most ``unanswered`` requests are without a reply."""
        while self._unanswered > unanswered:
            reply = await self._receive()
            if not isinstance(reply, protocol.InvokedReply):
                text = reply.text if isinstance(reply, protocol.FailedReply) else reply.type
                raise ConnectionLostError(f"a block was rejected: {text}")

    @contextlib.asynccontextmanager
    async def _exchange(self, timeout_s: float) -> AsyncGenerator[None]:
        """Drop the connection if the block fails: a late reply would be mistaken for the next request's."""
        keep = False
        try:
            async with self._deadline.within(timeout_s):
                yield
            keep = True
        except TooBigError:
            keep = True
            raise
        except ConnectionClosed as error:
            raise ConnectionLostError(
                f"the connection to the sandbox broke: {_close_reason(error)}"
            ) from None
        except TimeoutError:
            raise ConnectionLostError(f"the sandbox gave no answer in {timeout_s:g} s") from None
        except protocol.MessageError as error:
            raise ConnectionLostError(f"the runner's reply is malformed: {error}") from None
        finally:
            if not keep:
                self.drop()

    def drop(self) -> None:
        """Break the connection immediately. The runner then kills the running code."""
        if self._tools is not None:
            self._tools.close()
        self._websocket.transport.abort()

    async def close(self, *, timeout_s: float) -> None:
        """End the session and wait until its container is released. Never raises."""
        try:
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._websocket.send(protocol.encode(protocol.CloseRequest()))
                    await self._websocket.wait_closed()
        finally:
            self.drop()


def _decoded(frame: str | bytes) -> protocol.RunnerReply | bytes:
    return frame if isinstance(frame, bytes) else protocol.decode_reply(frame)


class ToolRelay:
    """Reads the messages of a session with tools, and answers calls of tools in the background."""

    def __init__(self, websocket: ClientConnection, host: ToolHost) -> None:
        self._websocket = websocket
        self._host: ToolHost | None = host
        self._replies: asyncio.Queue[protocol.RunnerReply | bytes | Exception] = asyncio.Queue(_READ_AHEAD)
        self._calls: set[asyncio.Task[None]] = set()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while True:
                message = _decoded(await self._websocket.recv())
                if isinstance(message, protocol.ToolCallMessage):
                    task = asyncio.create_task(self._answer(message))
                    self._calls.add(task)
                    task.add_done_callback(self._calls.discard)
                    continue
                if isinstance(message, protocol.ToolHeldMessage):
                    self._announce(message)
                    continue
                if isinstance(message, protocol.FlushedReply):
                    self.cancel_calls()  # the code has ended
                await self._replies.put(message)
        except (ConnectionClosed, protocol.MessageError) as error:
            await self._replies.put(error)

    def use(self, host: ToolHost | None) -> None:
        """Replace the tools; None for none."""
        self.cancel_calls()
        self._host = host

    async def receive(self) -> protocol.RunnerReply | bytes:
        """Return the next message that is not a call of a tool, or the next part of a file.

        Raises:
            ConnectionClosed, MessageError: the connection broke, or a message was malformed.
        """
        reply = await self._replies.get()
        if isinstance(reply, Exception):
            self._replies.put_nowait(reply)
            raise reply
        return reply

    def _announce(self, waiting: protocol.ToolHeldMessage) -> None:
        host = self._host
        if isinstance(host, AnnouncedTools) and waiting.name in {spec.name for spec in host.specs}:
            with contextlib.suppress(ToolError):  # the call itself reports it
                host.announce(waiting.name, parse_arguments(waiting.arguments))

    async def _answer(self, call: protocol.ToolCallMessage) -> None:
        try:
            host = self._host
            if host is None or call.name not in {spec.name for spec in host.specs}:
                raise ToolError(f"there is no tool {call.name[:64]!r}")
            ok, value, denied = await run_tool(host, call.name, parse_arguments(call.arguments), call.call_id)
        except ToolError as error:
            ok, value, denied = False, str(error)[:MAX_ERROR_CHARS], False
        if not ok:
            value = value.encode("utf-8", "backslashreplace").decode("utf-8")
        with contextlib.suppress(ConnectionClosed):
            message = protocol.ToolResultMessage(call_id=call.call_id, ok=ok, value=value, denied=denied)
            await self._websocket.send(protocol.encode(message))

    def close(self) -> None:
        """Stop reading, and cancel the calls."""
        self._reading.cancel()
        self.cancel_calls()

    def cancel_calls(self) -> None:
        """Cancel the calls that are running."""
        for task in self._calls:
            task.cancel()


async def _connect(endpoint: Endpoint) -> ClientConnection:
    address = endpoint.address
    uri = f"{'ws' if endpoint.tls is None else 'wss'}://{address.authority}{protocol.SESSION_PATH}"
    options: dict[str, Any] = {
        "additional_headers": endpoint.headers(),
        "compression": None,
        "max_size": protocol.MAX_REPLY_BYTES,
        "open_timeout": _HANDSHAKE_TIMEOUT_S,
        "ping_interval": endpoint.ping_interval_s,
        "ping_timeout": endpoint.ping_interval_s,
        "user_agent_header": None,
    }
    try:
        if address.path is not None:
            return await unix_connect(str(address.path), uri, **options)
        return await connect(uri, proxy=None, ssl=endpoint.tls, **options)
    except InvalidStatus as error:
        status = error.response.status_code
        if status == 503:
            raise BusyError(f"the runner at {address} accepts no more connections now") from None
        hint = "check that both have the same token" if status in (401, 403) else "is it a runner?"
        raise SandboxError(
            f"the runner at {address} rejected the connection with status {status}; {hint}"
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise SandboxError(
            f"the certificate of the runner at {address} is not trusted: {error.verify_message}"
        ) from None
    except (OSError, InvalidHandshake) as error:
        raise UnreachableError(
            f"no runner answers at {address}: {str(error) or type(error).__name__}"
        ) from None


def _close_reason(error: ConnectionClosed) -> str:
    if error.rcvd is not None and error.rcvd.reason:
        return error.rcvd.reason
    return "the runner is gone" if error.rcvd is None else f"code {error.rcvd.code}"
