from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sandbox_image.worker.flush import OutputCapture, decode
from sandbox_image.worker.live_output import MAX_TEXT_BYTES, OutputRelay
from tests.support.until import until

Frame = dict[str, Any]


def relayed(work: Callable[[OutputRelay], None]) -> list[Frame]:
    """Return the frames of a relay after ``work`` and its end."""

    async def run() -> list[Frame]:
        frames: list[Frame] = []
        relay = OutputRelay(frames.append, lambda: True, attempt=1)
        work(relay)
        relay.close()
        return frames

    return asyncio.run(run())


def text_of(frames: list[Frame], stream: str) -> str:
    return "".join(frame["text"] for frame in frames if frame["stream"] == stream)


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=20)), max_size=20))
def test_characters_may_be_split_between_reads(parts: list[tuple[str, bytes]]) -> None:
    frames = relayed(lambda relay: [relay.add(*part) for part in parts] and None)
    for stream in ("stdout", "stderr"):
        assert text_of(frames, stream) == decode(b"".join(data for name, data in parts if name == stream))
    assert not any(frame["truncated"] for frame in frames)
    assert all(frame["text"] for frame in frames)


@given(st.lists(st.sampled_from(["a" * 7000, "\0" * 3000, "\U0001f600" * 1000, "é\n" * 4000]), max_size=12))
def test_frames_and_their_sum_are_bounded(texts: list[str]) -> None:
    frames = relayed(lambda relay: [relay.add("stdout", text.encode()) for text in texts] and None)
    for frame in frames:
        assert len(json.dumps(frame)) + 4 <= 4096
    whole = "".join(texts).encode()
    assert text_of(frames, "stdout") == whole[:MAX_TEXT_BYTES].decode(errors="ignore")
    cut = [frame["truncated"] for frame in frames]
    assert cut == [False] * (len(frames) - 1) + [len(whole) > MAX_TEXT_BYTES] if frames else not whole


def test_invalid_bytes_do_not_exceed_the_limit() -> None:
    frames = relayed(lambda relay: relay.add("stderr", b"\xff" * MAX_TEXT_BYTES))
    assert len(text_of(frames, "stderr")) == MAX_TEXT_BYTES
    assert frames[-1] == {"op": "output", "stream": "stderr", "text": "", "attempt": 1, "truncated": True}


async def test_output_of_one_interval_is_one_frame_of_each_stream() -> None:
    frames: list[Frame] = []
    relay = OutputRelay(frames.append, lambda: True, attempt=2)
    for _ in range(50):
        relay.add("stderr", b"e")
        relay.add("stdout", b"o")
    assert frames == []
    await until(lambda: len(frames) == 2)
    common = {"op": "output", "attempt": 2, "truncated": False}
    assert frames == [
        {"stream": "stderr", "text": "e" * 50, **common},
        {"stream": "stdout", "text": "o" * 50, **common},
    ]


async def test_nothing_is_sent_while_the_channel_is_full() -> None:
    frames: list[Frame] = []
    room = 0

    def send(frame: Frame) -> None:
        nonlocal room
        assert room
        room -= 1
        frames.append(frame)

    relay = OutputRelay(send, lambda: room > 0, attempt=1)
    relay.add("stdout", b"x" * 10_000)
    assert frames == []
    room = 1
    await until(lambda: len(frames) == 1)
    room = 1000
    await until(lambda: len(text_of(frames, "stdout")) == 10_000)


async def test_a_run_that_is_given_up_sends_nothing_more() -> None:
    frames: list[Frame] = []
    relay = OutputRelay(frames.append, lambda: True, attempt=1)
    relay.add("stdout", b"x")
    relay.drop()
    relay.add("stdout", b"y" * 10_000)
    relay.close()
    assert frames == []


@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(2, 100))
def test_a_late_relay_begins_with_the_head_of_the_output(early: bytes, late: bytes, keep: int) -> None:
    frames: list[Frame] = []

    async def run(live: bool) -> str:
        capture = OutputCapture(keep, 1 << 20, lambda: None)
        relay = OutputRelay(frames.append, lambda: True, attempt=1)
        os.write(capture.writer, early)
        capture._read()
        if live:
            capture.relay("stdout", relay)
        os.write(capture.writer, late)
        kept = capture.close()
        relay.close()
        return kept

    assert asyncio.run(run(live=True)) == asyncio.run(run(live=False))
    head = early[: keep // 2]
    if len(early) > len(head):
        assert text_of(frames, "stdout") == decode(head) + decode(late)
        assert [frame["truncated"] for frame in frames].count(True) == 1
    else:
        assert text_of(frames, "stdout") == decode(early + late)
        assert not any(frame["truncated"] for frame in frames)
