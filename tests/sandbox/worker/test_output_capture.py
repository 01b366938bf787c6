from __future__ import annotations

import asyncio
import os

from hypothesis import given
from hypothesis import strategies as st

from sandbox_image.worker.flush import OutputCapture, decode, trim_end, trim_start


def captured(pieces: list[bytes], keep: int, limit: int = 1 << 30) -> tuple[str, int]:
    """Return the text of a capture of ``pieces`` and the number of calls of ``on_limit``."""

    async def run() -> tuple[str, int]:
        calls: list[int] = []
        capture = OutputCapture(keep, limit, lambda: calls.append(1))
        for piece in pieces:
            os.write(capture.writer, piece)
            await asyncio.sleep(0)
        return capture.close(), len(calls)

    return asyncio.run(run())


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10), st.integers(2, 100))
def test_keeps_head_and_tail(pieces: list[bytes], keep: int) -> None:
    data = b"".join(pieces)
    text, _ = captured(pieces, keep)
    if len(data) <= keep:
        assert text == decode(data)
    else:
        head, tail = data[: keep // 2], data[len(data) - (keep - keep // 2) :]
        left_out = len(data) - keep
        assert (
            text
            == f"{decode(trim_end(head))}\n... [{left_out} bytes left out] ...\n{decode(trim_start(tail))}"
        )


def test_calls_on_limit_once() -> None:
    assert captured([b"x" * 60, b"x" * 60, b"x" * 60], 10, limit=100)[1] == 1
    assert captured([b"x" * 60], 10, limit=100)[1] == 0


@given(st.text(max_size=30), st.integers(0, 120))
def test_trims_incomplete_characters(text: str, at: int) -> None:
    data = text.encode("utf-8", "ignore")
    assert data.startswith(trim_end(data[:at]))
    trim_end(data[:at]).decode()
    trim_start(data[at:]).decode()
    assert len(data[:at]) - len(trim_end(data[:at])) < 4


def test_decode_escapes_invalid_bytes() -> None:
    assert decode(b"a\xff\x00") == "a\\xff\x00"
