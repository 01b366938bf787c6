"""Live output: what the code of a flush writes, sent to the owner while it runs.

It is a copy for display: the result contains what ``OutputCapture`` keeps. A frame is sent only if the
channel takes it immediately, so a slow owner delays neither the code nor the supervisor.
"""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_TEXT_BYTES = 64 << 10
"""UTF-8 bytes of text to send of one run."""
_INTERVAL_S = 0.05
_DELAY_S = 0.005
"""Time to wait for more after the first byte: ``print`` writes a line and its end separately."""
_CHUNK_BYTES = 4 << 10
"""Pending text that does not wait for the end of the interval, in UTF-8 bytes."""
_FRAME_BYTES = 4096 - 4
"""Largest frame without its length. A pipe that is writable takes 4096 bytes (PIPE_BUF) without waiting."""


@dataclass
class _Piece:
    stream: str
    text: str
    truncated: bool = False


class OutputRelay:
    """Sends the output of one run of a script, in pieces of bounded size and number.

    Args:
        send: sends a frame to the owner.
        is_writable: returns whether a frame of at most 4096 bytes can be sent without waiting.
        attempt: 1, or 2 if the blocks run again as one script.
    """

    def __init__(
        self, send: Callable[[dict[str, Any]], None], is_writable: Callable[[], bool], attempt: int
    ) -> None:
        self._send = send
        self._is_writable = is_writable
        self._attempt = attempt
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {stream: decoder("backslashreplace") for stream in ("stdout", "stderr")}
        self._room = MAX_TEXT_BYTES
        self._is_full = False
        self._pending: list[_Piece] = []
        self._pending_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._next_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: str, data: bytes) -> None:
        """Send bytes that the code has written to ``stdout`` or ``stderr``."""
        if not self._is_full:
            self._push(stream, self._decoders[stream].decode(data))
            self._send_in_time()

    def skip(self, stream: str) -> None:
        """Note that output before the next bytes of the stream is not available."""
        if not self._is_full:
            self._push(stream, self._decoders[stream].decode(b"", final=True))
            self._pending.append(_Piece(stream, "", truncated=True))
            self._send_in_time()

    def close(self) -> None:
        """Send the rest. The run is over, so this may wait for the owner, as the result does."""
        for stream, decoder in self._decoders.items():
            if not self._is_full:
                self._push(stream, decoder.decode(b"", final=True))
        self._cancel_timer()
        self._send_pending(wait=True)

    def drop(self) -> None:
        """Send nothing more: the run is given up."""
        self._is_full = True
        self._pending = []
        self._cancel_timer()

    def _push(self, stream: str, text: str) -> None:
        data = text.encode()
        if len(data) > self._room:
            self._is_full = True
            data = data[: self._room]
            text = data.decode(errors="ignore")
        self._room -= len(data)
        self._pending_bytes += len(data)
        if text:
            last = next((piece for piece in reversed(self._pending) if piece.stream == stream), None)
            if last is None:
                self._pending.append(_Piece(stream, text))
            else:
                last.text += text
        if self._is_full:
            self._pending.append(_Piece(stream, "", truncated=True))

    def _send_in_time(self) -> None:
        """Send the pending text now if there is enough, otherwise soon or at the end of the interval."""
        if self._pending_bytes >= _CHUNK_BYTES:
            self._send_pending()
        elif self._pending and self._timer is None:
            at = max(self._next_at, self._loop.time() + _DELAY_S)
            self._timer = self._loop.call_at(at, self._send_pending)

    def _send_pending(self, *, wait: bool = False) -> None:
        self._cancel_timer()
        self._next_at = self._loop.time() + _INTERVAL_S
        while self._pending:
            if not (wait or self._is_writable()):
                self._timer = self._loop.call_at(self._next_at, self._send_pending)
                return
            piece = self._pending[0]
            frame, length = self._frame(piece)
            self._send(frame)
            self._pending_bytes -= len(frame["text"].encode())
            piece.text, piece.truncated = piece.text[length:], False
            if not piece.text:
                self._pending.pop(0)

    def _frame(self, piece: _Piece) -> tuple[dict[str, Any], int]:
        """Return a frame with the beginning of a piece, and the number of its characters."""
        length = min(len(piece.text), _FRAME_BYTES)
        while True:
            frame = {
                "op": "output",
                "stream": piece.stream,
                "text": piece.text[:length],
                "attempt": self._attempt,
                "truncated": piece.truncated,
            }
            size = len(json.dumps(frame))
            if size <= _FRAME_BYTES:
                return frame, length
            length = length * (_FRAME_BYTES - 100) // size

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
