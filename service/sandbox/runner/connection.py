"""Client side of one connection to the runner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.protocol import State

from service.sandbox.base import QueueTimeoutError, SandboxError, SessionLimits
from service.sandbox.runner import protocol
from service.sandbox.runner.protocol import Address

_HANDSHAKE_TIMEOUT_S = 5.0

R = TypeVar("R", bound=protocol.RunnerReply)


class UnreachableError(SandboxError):
    """The runner does not answer or accepts no connections now. A retry may succeed."""


class ConnectionLostError(SandboxError):
    """The connection broke, which ended the session. The last request may or may not have been executed."""


class TooBigError(protocol.MessageError):
    """The request is larger than the runner accepts. Nothing was sent."""


class RunnerConnection:
    """Connection that holds one session. Replies come in order, and no request is sent twice."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket
        self._unanswered = 0

    @classmethod
    async def open(
        cls,
        address: Address,
        token: str,
        limits: SessionLimits,
        *,
        timeout_s: float,
        files: protocol.FileOptions | None = None,
    ) -> tuple[RunnerConnection, SessionLimits]:
        """Connect, open a session, and return the connection and the limits that the runner grants.

        Retries for ``timeout_s`` while the runner is unreachable. This is safe, since no code was sent yet.

        Raises:
            SandboxError: the token is wrong, or the runner stayed unreachable.
        """
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((UnreachableError, ConnectionLostError)),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            stop=stop_after_delay(timeout_s),
            reraise=True,
        ):
            with attempt:
                connection = cls(await _connect(address, token))
                request = protocol.OpenRequest(
                    run_limit_s=limits.run_limit_s, eager=limits.eager, files=files
                )
                opened = await connection.request(
                    request, protocol.OpenedReply, timeout_s=_HANDSHAKE_TIMEOUT_S
                )
                return connection, SessionLimits(opened.run_limit_s, opened.eager)
        raise AssertionError("tenacity either returns or raises")

    async def request(self, request: protocol.RunnerRequest, expected: type[R], *, timeout_s: float) -> R:
        """Send one request and wait for its reply.

        Raises:
            MessageError: the request is too big; nothing was sent.
            QueueTimeoutError, SandboxError: the runner reported this error; the connection stays usable.
            ConnectionLostError: it broke, or no reply came within ``timeout_s``; the connection is dropped.
        """
        async with self._exchange(timeout_s):
            await self._send(request)
            await self._catch_up(1)
            reply = await self._receive()
        if isinstance(reply, protocol.FailedReply):
            raise (QueueTimeoutError if reply.reason == "queue_timeout" else SandboxError)(reply.text)
        if not isinstance(reply, expected):
            self.drop()
            raise ConnectionLostError(f"the runner replied {reply.type} to {request.type}")
        return reply

    @property
    def is_open(self) -> bool:
        return self._websocket.state is State.OPEN

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
        """Yield the content that a read request returns. Raises as `request`."""
        async with self._exchange(timeout_s):
            await self._send(request)
            await self._catch_up(1)
            while isinstance(frame := await self._websocket.recv(), bytes):
                yield frame
            self._unanswered -= 1
            self._done(protocol.decode_reply(frame))

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

    async def _receive(self) -> protocol.RunnerReply:
        reply = protocol.decode_reply(await self._websocket.recv())
        self._unanswered -= 1
        return reply

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
            async with asyncio.timeout(timeout_s):
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


async def _connect(address: Address, token: str) -> ClientConnection:
    uri = f"ws://{address.authority}{protocol.SESSION_PATH}"
    options: dict[str, Any] = {
        "additional_headers": {"Authorization": f"Bearer {token}"},
        "compression": None,
        "max_size": protocol.MAX_REPLY_BYTES,
        "open_timeout": _HANDSHAKE_TIMEOUT_S,
        "user_agent_header": None,
    }
    try:
        if address.path is not None:
            return await unix_connect(str(address.path), uri, **options)
        return await connect(uri, proxy=None, **options)
    except InvalidStatus as error:
        status = error.response.status_code
        if status == 503:
            raise UnreachableError(f"the runner at {address} accepts no more connections now") from None
        hint = "check that both have the same token" if status in (401, 403) else "is it a runner?"
        raise SandboxError(
            f"the runner at {address} rejected the connection with status {status}; {hint}"
        ) from None
    except (OSError, InvalidHandshake) as error:
        raise UnreachableError(
            f"no runner answers at {address}: {str(error) or type(error).__name__}"
        ) from None


def _close_reason(error: ConnectionClosed) -> str:
    if error.rcvd is not None and error.rcvd.reason:
        return error.rcvd.reason
    return "the runner is gone" if error.rcvd is None else f"code {error.rcvd.code}"
