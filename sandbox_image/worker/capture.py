"""Take a stream from a pipe, keep its head and its tail, count the rest."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

CHUNK = 1 << 16


class Capture:
    """Reads one pipe as it fills, so a writer never blocks for long, and holds at most ``keep`` bytes."""

    def __init__(self, keep: int, limit: int, on_limit: Callable[[], None]) -> None:
        self.head = bytearray()
        self.tail: deque[bytes] = deque()
        self.total = 0
        self._head_size = keep // 2
        self._tail_size = keep - self._head_size
        self._tail_bytes = 0
        self._limit = limit
        self._on_limit = on_limit
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader, self._read)

    def _read(self) -> bool:
        """Take one chunk. False when there is nothing to take."""
        try:
            chunk = os.read(self._reader, CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._reader)
            return False
        self._add(chunk)
        return True

    def _add(self, chunk: bytes) -> None:
        within = self.total <= self._limit
        self.total += len(chunk)
        room = self._head_size - len(self.head)
        if room > 0:
            self.head += chunk[:room]
            chunk = chunk[room:]
        if chunk:
            self.tail.append(chunk)
            self._tail_bytes += len(chunk)
            while self._tail_bytes - len(self.tail[0]) >= self._tail_size:
                self._tail_bytes -= len(self.tail.popleft())
        if within and self.total > self._limit:
            self._on_limit()

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> str:
        """Take what is left in the pipe, close it, and give the text with a note of what was left out."""
        for _ in range(64):  # a pipe holds at most 1 MiB; a writer that is still there is not waited for
            if not self._read():
                break
        self.close_writer()
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        tail = b"".join(self.tail)[-self._tail_size :]
        left_out = self.total - len(self.head) - len(tail)
        if not left_out:
            return decode(bytes(self.head) + tail)
        head, tail = whole_end(self.head), whole_start(tail)
        return f"{decode(head)}\n... [{left_out} bytes left out] ...\n{decode(tail)}"


def decode(data: bytes) -> str:
    return data.decode("utf-8", errors="backslashreplace")


def whole_end(data: bytes | bytearray) -> bytes:
    """Without the bytes of a character that the cut left incomplete at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue  # inside a character; its first byte is further back
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return bytes(data[:-back] if length > back else data)
    return bytes(data)


def whole_start(data: bytes) -> bytes:
    """Without the bytes of a character that the cut left incomplete at the start."""
    skip = 0
    while skip < min(3, len(data)) and data[skip] & 0xC0 == 0x80:
        skip += 1
    return data[skip:]
