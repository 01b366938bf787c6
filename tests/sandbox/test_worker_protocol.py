from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sandbox.worker_protocol import (
    MAX_FRAME_BYTES,
    DockerStream,
    FrameError,
    Ready,
    Result,
    encode,
    read_frame,
)

RESULT: dict[str, Any] = {
    "op": "result",
    "status": "ok",
    "stdout": "1\n",
    "stderr": "",
    "wall_seconds": 0.5,
    "exit_code": 0,
    "signal": None,
    "started_at": 1.0,
    "finished_at": 2,
    "runs": [[1.0, 1.25], [1.75, 2]],
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def parse(data: bytes) -> object:
    async def read() -> object:
        return await read_frame(reader_of(data))

    return asyncio.run(read())


def framed(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


def test_decodes_a_result() -> None:
    frame = parse(encode(RESULT))
    assert isinstance(frame, Result)
    result = frame.execution_result(waited_seconds=0.1)
    assert (result.status, result.stdout, result.wall_seconds, result.waited_seconds) == (
        "ok",
        "1\n",
        0.5,
        0.1,
    )
    assert result.runs == ((1.0, 1.25), (1.75, 2.0))


def test_encode_keeps_lone_surrogates() -> None:
    data = encode({"op": "invoke", "code": "'\ud800'"})
    assert json.loads(data[4:])["code"] == "'\ud800'"


@pytest.mark.parametrize(
    "change",
    [
        {"op": "verdict"},
        {"status": "great"},
        {"status": "sandbox_error"},
        {"stdout": None},
        {"stdout": 7},
        {"wall_seconds": -1.0},
        {"wall_seconds": float("nan")},
        {"wall_seconds": "1"},
        {"exit_code": 256},
        {"exit_code": True},
        {"signal": 0},
        {"extra": 1},
        {"stdout": "\ud800"},
    ],
    ids=str,
)
def test_rejects_invalid_fields(change: dict[str, Any]) -> None:
    data = json.dumps({**RESULT, **change}, default=lambda _: {}).encode()
    with pytest.raises(FrameError):
        parse(framed(data))


def test_rejects_a_missing_field() -> None:
    for field in RESULT:
        with pytest.raises(FrameError):
            parse(encode({key: value for key, value in RESULT.items() if key != field}))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"null", b"[]", b'"op"', b"\xff\xfe", b"[" * 100_000, b"1" * 5000]
)
def test_rejects_bytes_that_are_not_a_frame(data: bytes) -> None:
    with pytest.raises(FrameError):
        parse(framed(data))


def test_rejects_a_long_frame_before_reading_it() -> None:
    with pytest.raises(FrameError, match="exceeds the maximum"):
        parse(struct.pack("!I", MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize("cut", [0, 2, 4, 30])
def test_a_truncated_frame_raises_eof_error(cut: int) -> None:
    with pytest.raises(EOFError):
        parse(encode(RESULT)[:cut])


@given(
    json_values
    | st.fixed_dictionaries(
        {"op": st.sampled_from(["ready", "result", "fatal"])}, optional={"reason": json_values}
    )
)
def test_any_json_value_is_a_frame_or_rejected(value: object) -> None:
    try:
        frame = parse(framed(json.dumps(value).encode()))
    except FrameError:
        return
    assert type(frame).__name__ in ("Ready", "Result", "Fatal")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_no_other_error(data: bytes) -> None:
    with pytest.raises((FrameError, EOFError)):
        parse(data)


@given(
    st.lists(st.binary(max_size=40), max_size=8),
    st.lists(st.binary(max_size=20), max_size=8),
    st.lists(st.integers(1, 30), min_size=1, max_size=30),
)
def test_docker_stream_returns_stdout_for_any_chunks(
    out: list[bytes], err: list[bytes], reads: list[int]
) -> None:
    data = b""
    for i in range(max(len(out), len(err))):
        for stream, pieces in ((1, out), (2, err)):
            if i < len(pieces):
                data += struct.pack("!BxxxI", stream, len(pieces[i])) + pieces[i]

    async def read() -> bytes:
        stream, got = DockerStream(reader_of(data)), b""
        for n in reads:
            if len(got) + n > len(b"".join(out)):
                break
            got += await stream.readexactly(n)
        return got

    got = asyncio.run(read())
    assert b"".join(out).startswith(got)


@pytest.mark.parametrize("header", [struct.pack("!BxxxI", 7, 1), struct.pack("!BxxxI", 1, 1 << 30)])
def test_docker_stream_rejects_invalid_headers(header: bytes) -> None:
    async def read() -> None:
        await DockerStream(reader_of(header + b"x")).readexactly(1)

    with pytest.raises(FrameError, match="Docker's stream"):
        asyncio.run(read())


def test_docker_stream_keeps_the_end_of_stderr() -> None:
    async def read() -> str:
        data = struct.pack("!BxxxI", 2, 10_000) + b"d" * 10_000 + struct.pack("!BxxxI", 1, 1) + b"x"
        stream = DockerStream(reader_of(data))
        assert await stream.readexactly(1) == b"x"
        return stream.diagnostics

    assert asyncio.run(read()) == "d" * 4096


def test_decodes_ready() -> None:
    assert parse(encode({"op": "ready", "python": "3.12.1", "pid": 1})) == Ready(
        op="ready", python="3.12.1", pid=1
    )
