"""Sessions with files through a runner, with a fake sandbox behind it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from service.sandbox.base import SandboxError, SessionLimits
from service.sandbox.files import WorkFile
from service.sandbox.runner import protocol
from tests.sandbox.conftest import Served, ServeFake, served
from tests.sandbox.runner.test_server import OPEN, connect, request
from tests.support.fake_files import PNG, FakeFileSandbox
from tests.support.tool_host import RecordingHost
from tests.support.until import until

LIMITS = SessionLimits(run_limit_s=2.0, memory_mb=1024, figures="png")


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(FakeFileSandbox(), f"unix:{tmp_path}/r.sock") as running:
        yield running


async def parts(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_files_go_in_and_out(runner: Served) -> None:
    session = runner.client.file_session(LIMITS)
    assert not session.is_alive
    await session.lease()
    assert session.is_alive
    assert runner.sandbox.sessions[0].limits.memory_mb == 1024
    big = bytes(range(256)) * 20_000
    await session.put("big", len(big), parts(big[:3_000_000], big[3_000_000:]))
    await session.put("empty", 0, parts())
    await session.configure(SessionLimits(run_limit_s=1.5, eager=False, figures="svg"))
    assert runner.sandbox.sessions[0].limits == SessionLimits(1.5, False, figures="svg")
    await session.invoke(f"work['d/ü'] = inputs['big']; show('image/png', {PNG!r})")
    assert (await session.flush()).status == "ok"
    changes = await session.changes()
    [file], [figure] = changes.files, changes.displays
    assert file.path == "d/ü"
    assert b"".join([chunk async for chunk in session.read(figure)]) == PNG
    await session.remove("empty")
    await session.invoke("print(list(inputs))")
    assert (await session.flush()).stdout == "['big']\n"
    await session.close()
    await until(lambda: not runner.sandbox.alive)


async def test_client_runs_the_tools_of_each_request(runner: Served) -> None:
    session, host = runner.client.file_session(LIMITS), RecordingHost()
    await session.lease()
    await session.configure(LIMITS, host)
    await session.invoke("work['a'] = b'content'; call('add', a=1, b=2); call('note', text='x')")
    assert (await session.flush()).stdout == "3\n1\n"
    assert host.notes == ["x"]
    [file] = (await session.changes()).files
    assert b"".join([chunk async for chunk in session.read(file)]) == b"content"
    await session.put("in", 3, parts(b"123"))
    await session.park()
    await session.freeze()
    other = RecordingHost()
    await session.configure(LIMITS, other)
    await session.invoke("call('note', text='y')")
    assert (await session.flush()).stdout == "1\n"
    assert (host.notes, other.notes) == (["x"], ["y"])
    await session.configure(LIMITS)
    assert runner.sandbox.sessions[0].tools is None
    await session.invoke("print(bytes(inputs['in']))")
    assert (await session.flush()).stdout == "b'123'\n"
    await session.close()


async def test_rejected_input_leaves_the_session_usable(runner: Served) -> None:
    session = runner.client.file_session(LIMITS)
    await session.lease()
    await session.put("a", 2, parts(b"12"))
    with pytest.raises(ValueError, match="exists"):
        await session.put("a", 3_000_000, parts(bytes(1_500_000), bytes(1_500_000)))
    await session.invoke("print(inputs)")
    assert (await session.flush()).stdout == "{'a': b'12'}\n"


async def test_incomplete_input_loses_the_session(runner: Served) -> None:
    session = runner.client.file_session(LIMITS)
    await session.lease()
    with pytest.raises(SandboxError):
        await session.put("a", 10, parts(b"1"))
    assert not session.is_alive
    await session.lease()
    assert session.is_alive


async def test_parked_session_survives(runner: Served) -> None:
    session = runner.client.file_session(LIMITS)
    await session.lease()
    await session.invoke("x = 5")
    await session.flush()
    await session.park()
    await session.freeze()
    assert runner.sandbox.sessions[0].is_frozen
    await session.invoke("print(x)")
    assert (await session.flush()).stdout == "5\n"


async def test_content_that_differs_from_its_digest_is_an_error(runner: Served) -> None:
    session = runner.client.file_session(LIMITS)
    await session.lease()
    await session.invoke("work['a'] = b'1'")
    await session.flush()
    with pytest.raises(SandboxError, match="another content"):
        async for _ in session.read(WorkFile("a", 1, "0" * 64)):
            pass


async def test_a_file_that_is_not_read_to_its_end_leaves_the_session_usable(runner: Served) -> None:
    session = runner.client.file_session(LIMITS)
    await session.lease()
    await session.invoke("x = 5; work['a'] = b'1' * 100")
    await session.flush()
    [file] = (await session.changes()).files
    async with contextlib.aclosing(session.read(file)) as chunks:
        assert await anext(chunks) == b"1111"
    assert session.is_alive
    await session.invoke("print(x)")
    assert (await session.flush()).stdout == "5\n"


async def test_lost_connection_is_noticed(runner: Served) -> None:
    session = runner.client.file_session(LIMITS)
    await session.lease()
    assert session._connection is not None
    session._connection.drop()
    await until(lambda: not session.is_alive)
    with pytest.raises(SandboxError):
        await session.changes()


async def test_requests_about_files_need_a_session_with_files(runner: Served) -> None:
    async with connect(runner) as socket:
        reply = await request(socket, OPEN, '{"type": "changes"}')
        assert (reply["type"], reply["reason"]) == ("failed", "sandbox_error")


async def test_sandbox_without_files_rejects_such_sessions(serve_fake: ServeFake) -> None:
    async with serve_fake() as plain, connect(plain) as socket:
        await socket.send(OPEN.replace("}", ', "files": {"memory_mb": null}}'))
        with contextlib.suppress(Exception):
            await socket.recv()
        assert socket.close_code == protocol.CLOSE_VIOLATION


@pytest.mark.parametrize(
    "frames",
    [
        [b"unannounced"],
        ['{"type": "put", "name": "a", "size": 1}', b"12"],
        ['{"type": "put", "name": "a", "size": 2}', b""],
        ['{"type": "put", "name": "a", "size": 2}', '{"type": "flush"}'],
        ['{"type": "put", "name": "a", "size": -1}'],
        ['{"type": "read", "item": {"path": "a"}}'],
        ['{"type": "park"}'],
    ],
)
async def test_violations_end_the_session(runner: Served, frames: list[str | bytes]) -> None:
    async with connect(runner) as socket:
        await request(socket, OPEN.replace("}", ', "files": {"memory_mb": null}}'), '{"type": "lease"}')
        for frame in frames:
            await socket.send(frame)
        with contextlib.suppress(Exception):
            while True:
                await socket.recv()
        assert socket.close_code == protocol.CLOSE_VIOLATION
    await until(lambda: not runner.sandbox.alive)
