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


def test_a_result_comes_through() -> None:
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


def test_lone_surrogates_in_code_survive() -> None:
    data = encode({"op": "invoke", "code": "'\ud800'"})
    assert json.loads(data[4:])["code"] == "'\ud800'"


@pytest.mark.parametrize(
    "change",
    [
        {"op": "verdict"},
        {"status": "great"},
        {"status": "sandbox_error"},
        {"stdout": None},
        {"stdout": b"x".hex},
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
def test_anything_else_is_refused(change: dict[str, Any]) -> None:
    data = json.dumps({**RESULT, **change}, default=lambda _: {}).encode()
    with pytest.raises(FrameError):
        parse(framed(data))


def test_a_missing_field_is_refused() -> None:
    for field in RESULT:
        with pytest.raises(FrameError):
            parse(encode({key: value for key, value in RESULT.items() if key != field}))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"null", b"[]", b'"op"', b"\xff\xfe", b"[" * 100_000, b"1" * 5000]
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        parse(framed(data))


def test_a_long_frame_is_refused_before_it_is_read() -> None:
    with pytest.raises(FrameError, match="the most is"):
        parse(struct.pack("!I", MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize("cut", [0, 2, 4, 30])
def test_a_worker_that_stops_in_the_middle(cut: int) -> None:
    with pytest.raises(EOFError):
        parse(encode(RESULT)[:cut])


@given(
    json_values
    | st.fixed_dictionaries(
        {"op": st.sampled_from(["ready", "result", "fatal"])}, optional={"reason": json_values}
    )
)
def test_no_json_gets_past_the_schema_in_another_way(value: object) -> None:
    try:
        frame = parse(framed(json.dumps(value).encode()))
    except FrameError:
        return
    assert type(frame).__name__ in ("Ready", "Result", "Fatal")


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises((FrameError, EOFError)):
        parse(data)


@given(
    st.lists(st.binary(max_size=40), max_size=8),
    st.lists(st.binary(max_size=20), max_size=8),
    st.lists(st.integers(1, 30), min_size=1, max_size=30),
)
def test_docker_stream_gives_stdout_whatever_the_cuts(
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
def test_what_is_not_dockers_stream_is_refused(header: bytes) -> None:
    async def read() -> None:
        await DockerStream(reader_of(header + b"x")).readexactly(1)

    with pytest.raises(FrameError, match="Docker's stream"):
        asyncio.run(read())


def test_stderr_of_the_supervisor_is_kept_within_a_bound() -> None:
    async def read() -> str:
        data = struct.pack("!BxxxI", 2, 10_000) + b"d" * 10_000 + struct.pack("!BxxxI", 1, 1) + b"x"
        stream = DockerStream(reader_of(data))
        assert await stream.readexactly(1) == b"x"
        return stream.diagnostics

    assert asyncio.run(read()) == "d" * 4096


def test_ready() -> None:
    assert parse(encode({"op": "ready", "python": "3.12.1", "pid": 1})) == Ready(
        op="ready", python="3.12.1", pid=1
    )
