"""A client's end of one connection to the runner."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from service.sandbox import wire
from service.sandbox.address import Address
from service.sandbox.base import QueueTimeoutError, SandboxError, SessionLimits

_HANDSHAKE_TIMEOUT_S = 5.0

R = TypeVar("R", bound=wire.Reply)


class UnreachableError(SandboxError):
    """The runner is away or takes nobody now; another try may help."""


class ConnectionLostError(SandboxError):
    """The connection broke, and the session with it. Whether the last request was done is not known."""


class RunnerConnection:
    """One session in the runner: one request at a time, never sent twice."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket

    @classmethod
    async def open(
        cls, address: Address, token: str, limits: SessionLimits, *, timeout_s: float
    ) -> tuple[RunnerConnection, SessionLimits]:
        """Connect and open a session; gives the limits that the runner grants.

        Tries again for ``timeout_s`` while the runner is away. No code was sent by then, so a new try runs
        nothing twice.

        Raises:
            SandboxError: the token is wrong, or the runner stayed away.
        """
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((UnreachableError, ConnectionLostError)),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            stop=stop_after_delay(timeout_s),
            reraise=True,
        ):
            with attempt:
                connection = cls(await _connect(address, token))
                request = wire.Open(run_limit_s=limits.run_limit_s, eager=limits.eager)
                opened = await connection.ask(request, wire.Opened, timeout_s=_HANDSHAKE_TIMEOUT_S)
                return connection, SessionLimits(opened.run_limit_s, opened.eager)
        raise AssertionError("tenacity either returns or raises")

    async def ask(self, request: wire.Request, expected: type[R], *, timeout_s: float) -> R:
        """Send one request and wait for its reply.

        Raises:
            MessageError: the request is too big; nothing was sent.
            QueueTimeoutError, SandboxError: the runner says so; the connection is still good.
            ConnectionLostError: it broke, or no reply came in ``timeout_s``; the connection is dropped.
        """
        frame = wire.encode(request)
        if len(frame.encode()) > wire.MAX_REQUEST_BYTES:
            raise wire.MessageError(f"the block is too big: the sandbox takes {wire.MAX_REQUEST_BYTES} bytes")
        reply: wire.Reply | None = None
        try:
            async with asyncio.timeout(timeout_s):
                await self._websocket.send(frame)
                reply = wire.decode_reply(await self._websocket.recv())
        except ConnectionClosed as error:
            raise ConnectionLostError(f"the connection to the sandbox broke: {_why(error)}") from None
        except TimeoutError:
            raise ConnectionLostError(f"the sandbox gave no answer in {timeout_s:g} s") from None
        except wire.MessageError as error:
            raise ConnectionLostError(f"the runner's reply is malformed: {error}") from None
        finally:
            if reply is None:  # also when cancelled: a late reply would be taken for the next request's
                self.drop()
        if isinstance(reply, wire.Failed):
            raise (QueueTimeoutError if reply.reason == "queue_timeout" else SandboxError)(reply.text)
        if not isinstance(reply, expected):
            self.drop()
            raise ConnectionLostError(f"the runner answered {reply.type} to {request.type}")
        return reply

    def drop(self) -> None:
        """Break the connection at once; the runner then kills what runs."""
        self._websocket.transport.abort()

    async def close(self, *, timeout_s: float) -> None:
        """End the session and wait until its container is given up; never raises."""
        try:
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._websocket.send(wire.encode(wire.Close()))
                    await self._websocket.wait_closed()
        finally:
            self.drop()


async def _connect(address: Address, token: str) -> ClientConnection:
    uri = f"ws://{address.authority}{wire.SESSION_PATH}"
    options: dict[str, Any] = {
        "additional_headers": {"Authorization": f"Bearer {token}"},
        "compression": None,
        "max_size": wire.MAX_REPLY_BYTES,
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
            raise UnreachableError(f"the runner at {address} takes no more connections now") from None
        remedy = "check that both have the same token" if status in (401, 403) else "is it a runner?"
        raise SandboxError(f"the runner at {address} refused with status {status}; {remedy}") from None
    except (OSError, InvalidHandshake) as error:
        raise UnreachableError(
            f"no runner answers at {address}: {str(error) or type(error).__name__}"
        ) from None


def _why(error: ConnectionClosed) -> str:
    if error.rcvd is not None and error.rcvd.reason:
        return error.rcvd.reason
    return "the runner is gone" if error.rcvd is None else f"code {error.rcvd.code}"
