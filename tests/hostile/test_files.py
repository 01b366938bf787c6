"""Hostile entries of the work directory, hostile displays and attempts on the inputs, on real sandboxes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
import pytest_asyncio

from service.sandbox.base import SandboxError, SessionLimits
from service.sandbox.files import FileChanges, FileSession

from .conftest import Backend

pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session")
async def tenant(backend: Backend) -> AsyncGenerator[FileSession]:
    session = backend.sandbox.file_session(SessionLimits(run_limit_s=25.0, figures="png"))
    await session.lease()
    yield session
    await session.close()
    await backend.neighbour.invoke("print(secret)")
    assert (await backend.neighbour.flush()).stdout == "42\n"


async def run(session: FileSession, code: str) -> tuple[str, FileChanges]:
    """Run ``code``, which must succeed, and return its output and its files."""
    await session.invoke(code)
    result = await session.flush()
    assert result.status == "ok", result
    return result.stdout, await session.changes()


async def content(session: FileSession, changes: FileChanges) -> dict[str, bytes]:
    return {item.path: b"".join([part async for part in session.read(item)]) for item in changes.files}


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_links_fifos_sockets_and_devices_are_not_followed(tenant: FileSession) -> None:
    _, changes = await run(
        tenant,
        "import os, socket\n"
        "os.symlink('/etc/passwd', 'passwd')\n"
        "os.symlink('/', 'root')\n"
        "os.symlink('loop', 'loop')\n"
        "os.mkfifo('fifo')\n"
        "try: os.mknod('device', 0o20666, os.makedev(1, 3))\n"
        "except OSError: pass\n"
        "try:\n"
        "    s = socket.socket(socket.AF_UNIX); s.bind('socket')\n"
        "except OSError: pass\n"
        "open('real', 'w').write('1')\n"
        "os.link('real', 'hard')\n"
        "try: os.link('/etc/passwd', 'stolen')\n"
        "except OSError: pass",
    )
    assert await content(tenant, changes) == {"real": b"1", "hard": b"1"}
    reasons = {entry.path: entry.reason for entry in changes.skipped}
    assert reasons.pop("socket", "not_a_file") == "not_a_file"
    assert reasons == {"passwd": "symlink", "root": "symlink", "loop": "symlink", "fifo": "not_a_file"}


async def test_huge_and_sparse_files_are_bounded(tenant: FileSession) -> None:
    _, changes = await run(
        tenant,
        "import os\n"
        "for number in range(8):\n"
        "    with open(f'sparse{number}', 'wb') as file:\n"
        "        try: file.truncate(60 << 20)\n"
        "        except OSError: pass\n"
        "open('small', 'w').write('1')",
    )
    listed = {item.path: item.size for item in changes.files}
    assert listed["small"] == 1
    assert sum(listed.values()) <= 128 << 20
    skipped = {entry.path: entry.reason for entry in changes.skipped}
    assert set(listed) | set(skipped) == {"small", *(f"sparse{number}" for number in range(8))}
    assert set(skipped.values()) <= {"too_large"}


async def test_many_and_deep_files_are_bounded(tenant: FileSession) -> None:
    _, changes = await run(
        tenant,
        "import os\n"
        "for number in range(300): open(f'f{number}', 'w').write(str(number))\n"
        "deep = 'd/' * 40\n"
        "os.makedirs(deep); open(deep + 'x', 'w').write('1')",
    )
    assert len(changes.files) == 64
    reasons = {entry.reason for entry in changes.skipped}
    assert reasons <= {"too_many", "too_deep"}
    assert len(changes.skipped) <= 16


async def test_hostile_names_are_reported_and_not_returned(tenant: FileSession) -> None:
    _, changes = await run(
        tenant,
        "import os\n"
        "for name in (b'\\xff\\xfe', b'new\\nline', b'esc\\x1b[2J', '\\u202egnp.exe'.encode(), b'n' * 255, b' ', b'-rf'):\n"
        "    os.close(os.open(b'/sandbox/' + name, os.O_CREAT | os.O_WRONLY))\n"
        "long = b'/sandbox'\n"
        "for _ in range(3):\n"
        "    long += b'/' + b'd' * 200\n"
        "    os.mkdir(long)\n"
        "os.close(os.open(long + b'/x', os.O_CREAT))",
    )
    assert {item.path for item in changes.files} == {"n" * 255, " ", "-rf"}
    assert {entry.reason for entry in changes.skipped} == {"name"}
    for entry in changes.skipped:
        assert entry.path.isascii()
        assert entry.path.isprintable()


async def test_unreadable_entries_are_reported(tenant: FileSession) -> None:
    _, changes = await run(
        tenant,
        "import os\n"
        "open('mine', 'w').write('1'); os.chmod('mine', 0)\n"
        "os.mkdir('closed'); open('closed/x', 'w').write('1'); os.chmod('closed', 0)",
    )
    assert changes.files == ()
    assert {(entry.path, entry.reason) for entry in changes.skipped} == {
        ("mine", "unreadable"),
        ("closed", "unreadable"),
    }


async def test_failed_flush_returns_nothing_and_restores_the_files(tenant: FileSession) -> None:
    await run(tenant, "open('kept', 'w').write('old')")
    for ending in ("1/0", "import os; os.kill(os.getpid(), 9)", "import sys; sys.exit(3)"):
        await tenant.invoke(f"open('kept', 'w').write('new'); open('more', 'w').write('1')\n{ending}")
        assert (await tenant.flush()).status == "error"
        changes = await tenant.changes()
        assert (changes.files, changes.displays) == ((), ())
    stdout, _ = await run(tenant, "import os\nprint(open('kept').read(), os.path.exists('more'))")
    assert stdout == "old False\n"


async def test_inputs_can_only_be_read(tenant: FileSession, backend: Backend) -> None:
    await tenant.put("data.csv", 8, chunks(b"a,b\n", b"1,2\n"))
    stdout, changes = await run(
        tenant,
        "import os\n"
        "print(open('/inputs/data.csv').read())\n"
        "def tries(action):\n"
        "    try: action(); print('changed')\n"
        "    except OSError: pass\n"
        "tries(lambda: open('/inputs/data.csv', 'a'))\n"
        "tries(lambda: open('/inputs/new', 'w'))\n"
        "tries(lambda: os.unlink('/inputs/data.csv'))\n"
        "tries(lambda: os.rename('/inputs/data.csv', '/inputs/x'))\n"
        "tries(lambda: os.chmod('/inputs/data.csv', 0o777))\n"
        "tries(lambda: os.chmod('/inputs', 0o777))\n"
        "tries(lambda: os.utime('/inputs/data.csv'))\n"
        "tries(lambda: os.truncate('/inputs/data.csv', 0))\n"
        "tries(lambda: os.link('/inputs/data.csv', '/sandbox/link'))\n"
        "tries(lambda: os.setxattr('/inputs/data.csv', 'user.x', b'1'))\n"
        "print(os.listdir('/inputs'))",
    )
    assert stdout == "a,b\n1,2\n\n['data.csv']\n"
    assert changes.files == ()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", ".", "..", "a/b"])
async def test_names_of_inputs_are_checked_in_the_sandbox_too(tenant: FileSession, name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        await tenant.put(name, 1, chunks(b"1"))
    assert (await run(tenant, "import os\nprint(os.listdir('/inputs'))"))[0] == "[]\n"


async def test_incomplete_input_loses_the_container_and_nothing_else(tenant: FileSession) -> None:
    with pytest.raises(SandboxError):
        await tenant.put("x", 10, chunks(b"1"))
    assert not tenant.is_alive


async def test_hostile_displays_change_nothing(tenant: FileSession) -> None:
    await run(
        tenant,
        "import sys, types\n"
        "class Frame:\n"
        "    def __repr__(self): return 'frame'\n"
        "    def to_html(self, **options):\n"
        "        globals()['changed'] = True\n"
        "        open('from-html', 'w').write('1')\n"
        "        return '<script>' + 'x' * 10**7\n"
        "pandas = types.ModuleType('pandas'); pandas.DataFrame = Frame\n"
        "sys.modules['pandas'] = pandas",
    )
    stdout, changes = await run(tenant, "Frame()")
    assert stdout == "frame\n"
    assert changes.displays == ()
    stdout, _ = await run(tenant, "print('changed' in globals())")
    assert stdout == "False\n"


async def test_endless_display_is_killed(tenant: FileSession) -> None:
    await run(
        tenant,
        "import os, sys, types\n"
        "class Frame:\n"
        "    def __repr__(self): return 'frame'\n"
        "    def to_html(self, **options):\n"
        "        while True:\n"
        "            try: os.fork()\n"
        "            except OSError: pass\n"
        "pandas = types.ModuleType('pandas'); pandas.DataFrame = Frame\n"
        "sys.modules['pandas'] = pandas\n"
        "value = 42",
    )
    await tenant.invoke("Frame()")
    result = await tenant.flush()
    assert (result.status, result.stdout) == ("ok", "frame\n")
    try:
        changes = await tenant.changes()
    except SandboxError:
        return  # the forks left no room to continue, so this tenant's container was given up
    assert changes.displays == ()
    assert (await run(tenant, "print(value)"))[0] == "42\n"


async def test_forged_display_is_data_only(tenant: FileSession) -> None:
    _, changes = await run(
        tenant,
        "import sys, types\n"
        "class Frame:\n"
        "    def to_html(self, **options): return '<script>alert(1)</script>\\ud800'\n"
        "pandas = types.ModuleType('pandas'); pandas.DataFrame = Frame\n"
        "sys.modules['pandas'] = pandas\n"
        "Frame()",
    )
    [display] = changes.displays
    html = b"".join([part async for part in tenant.read(display)])
    assert html == b"<script>alert(1)</script>\\ud800"


async def test_background_thread_cannot_change_what_was_listed(tenant: FileSession) -> None:
    _, changes = await run(
        tenant,
        "import os, threading, time\n"
        "open('a', 'w').write('1')\n"
        "def swap():\n"
        "    while True:\n"
        "        try:\n"
        "            os.unlink('a'); os.symlink('/etc/passwd', 'a'); os.unlink('a'); open('a', 'w').write('2' * 9)\n"
        "        except OSError: pass\n"
        "threading.Thread(target=swap, daemon=True).start()",
    )
    for item in changes.files:
        data = b"".join([part async for part in tenant.read(item)])
        assert set(data) <= set(b"12")


async def test_parked_container_keeps_its_state_and_runs_nothing(tenant: FileSession) -> None:
    await run(tenant, "x = 41; open('a', 'w').write('1')")
    await tenant.invoke("import time\nx = 0\nopen('b', 'w').write('1')\nwhile True: time.sleep(0.01)")
    await asyncio.sleep(0.5)
    await tenant.park()
    await tenant.freeze()
    assert tenant.is_alive
    stdout, _ = await run(tenant, "import os\nprint(x + 1, sorted(os.listdir('.')))")
    assert stdout == "42 ['a']\n"


async def test_eager_and_plain_runs_return_the_same_files(tenant: FileSession, backend: Backend) -> None:
    blocks = ["open('a', 'w').write('1')", "x = 1", "open('b', 'w').write('2')\nx"]
    plain = backend.sandbox.file_session(SessionLimits(run_limit_s=25.0, eager=False, figures="png"))
    try:
        await plain.lease()
        results = []
        for session in (tenant, plain):
            for block in blocks:
                await session.invoke(block)
                await asyncio.sleep(0.2)
            result = await session.flush()
            results.append((result.stdout, result.status, await session.changes()))
        assert results[0] == results[1]
    finally:
        await plain.close()
