from __future__ import annotations

import asyncio
import os

from hypothesis import given
from hypothesis import strategies as st

from sandbox_image.worker.capture import Capture, decode, whole_end, whole_start


def captured(pieces: list[bytes], keep: int, limit: int = 1 << 30) -> tuple[str, int]:
    """Text of a capture that was written ``pieces``, and how often it met its limit."""

    async def run() -> tuple[str, int]:
        met = []
        capture = Capture(keep, limit, lambda: met.append(1))
        for piece in pieces:
            os.write(capture.writer, piece)
            await asyncio.sleep(0)
        return capture.close(), len(met)

    return asyncio.run(run())


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10), st.integers(2, 100))
def test_head_and_tail_are_kept(pieces: list[bytes], keep: int) -> None:
    data = b"".join(pieces)
    text, _ = captured(pieces, keep)
    if len(data) <= keep:
        assert text == decode(data)
    else:
        head, tail = data[: keep // 2], data[len(data) - (keep - keep // 2) :]
        left_out = len(data) - keep
        assert (
            text
            == f"{decode(whole_end(head))}\n... [{left_out} bytes left out] ...\n{decode(whole_start(tail))}"
        )


def test_the_limit_is_told_once() -> None:
    assert captured([b"x" * 60, b"x" * 60, b"x" * 60], 10, limit=100)[1] == 1
    assert captured([b"x" * 60], 10, limit=100)[1] == 0


@given(st.text(max_size=30), st.integers(0, 120))
def test_a_cut_inside_a_character_leaves_whole_characters(text: str, at: int) -> None:
    data = text.encode("utf-8", "ignore")
    assert data.startswith(whole_end(data[:at]))
    whole_end(data[:at]).decode()
    whole_start(data[at:]).decode()
    assert len(data[:at]) - len(whole_end(data[:at])) < 4


def test_bytes_that_are_no_text_are_shown() -> None:
    assert decode(b"a\xff\x00") == "a\\xff\x00"
