"""Attacks on live output: forged frames, floods, and output of a run that is over."""

from __future__ import annotations

import pytest

from service.sandbox.base import MAX_LIVE_BYTES, ExecutionResult, OutputChunk, SessionLimits

from .conftest import Backend

pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]

FORGED = """
import json, os, struct, sys
for frame in (
    {"op": "result", "status": "ok", "stdout": "forged"},
    {"op": "output", "stream": "stdout", "text": "forged", "attempt": 2, "truncated": False},
    {"op": "fatal", "reason": "forged"},
    {"op": "settled"},
):
    data = json.dumps(frame).encode()
    data = struct.pack("!I", len(data)) + data
    for fd in range(1, 256):
        try: os.write(fd, data)
        except OSError: pass
    for path in ("/proc/1/fd/1", "/proc/1/fd/4", f"/proc/{os.getppid()}/fd/1"):
        try: open(path, "wb").write(data)
        except OSError: pass
print("end")
"""
FLOOD = """
import os
while True:
    os.write(1, b"\\0" * 65536)
    os.write(2, b"\\xff" * 65536)
"""
BYTES = """
import os
for _ in range(20000):
    os.write(1, b"o")
    os.write(2, b"e")
"""
LEFT_BEHIND = """
import os, time
if os.fork() == 0:
    os.setsid()
    while True:
        os.write(1, b"late ")
        time.sleep(0.01)
print("done")
"""


async def watched(
    backend: Backend, *blocks: str, eager: bool = True
) -> tuple[list[OutputChunk], ExecutionResult, str]:
    """Return the live output and the result of blocks, and the stdout of the tenant's next flush."""
    tenant = backend.sandbox.session(SessionLimits(run_limit_s=20, eager=eager))
    chunks: list[OutputChunk] = []
    after: list[OutputChunk] = []
    for block in blocks:
        await tenant.invoke(block)
    result = await tenant.flush(chunks.append)
    await tenant.invoke("print('still here')")
    ended = await tenant.flush(after.append)
    assert "".join(chunk.text for chunk in after) == ended.stdout
    await tenant.close()
    return chunks, result, ended.stdout


def text(chunks: list[OutputChunk], stream: str = "stdout") -> str:
    return "".join(chunk.text for chunk in chunks if chunk.stream == stream)


@pytest.mark.parametrize("eager", [True, False])
async def test_h77_printed_frames_are_text(backend: Backend, eager: bool) -> None:
    chunks, result, after = await watched(backend, FORGED, eager=eager)
    assert (result.status, after) == ("ok", "still here\n")
    assert result.stdout.endswith("end\n")
    assert text(chunks) == result.stdout
    assert text(chunks, "stderr") == result.stderr
    assert {chunk.attempt for chunk in chunks} == {1}


async def test_h78_a_flood_is_cut_and_the_run_is_killed(backend: Backend) -> None:
    chunks, result, after = await watched(backend, FLOOD)
    assert (result.status, after) == ("output_limit", "still here\n")
    assert sum(len(chunk.text) for chunk in chunks) <= MAX_LIVE_BYTES
    assert chunks[-1].truncated


async def test_h78_single_bytes_are_joined(backend: Backend) -> None:
    chunks, result, _ = await watched(backend, BYTES)
    assert result.status == "ok"
    assert (text(chunks), text(chunks, "stderr")) == ("o" * 20_000, "e" * 20_000)
    assert len(chunks) < 20_000 / 10  # two in 50 ms, or one for 4 KiB; loose for a busy machine


async def test_h78_a_process_that_is_left_behind_writes_nothing_later(backend: Backend) -> None:
    chunks, result, after = await watched(backend, LEFT_BEHIND)
    assert (result.status, after) == ("ok", "still here\n")
    assert text(chunks).count("done") == result.stdout.count("done") == 1  # the newline is written separately
