"""Containers that are reset after a session and used for the next one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from service.sandbox.base import ExecutionResult, SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

Run = Callable[..., Awaitable[list[ExecutionResult]]]

LOOK = """
import builtins, json, os, random, resource, sys, numpy, sympy.core.random
print(json.dumps({
    "names": sorted(set(globals()) - {
        "builtins", "json", "os", "random", "resource", "sys", "numpy", "sympy"}),
    "files": [os.listdir(folder) for folder in ("/tmp", "/sandbox", "/dev/shm")],
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),
    "modules": len(sys.modules), "builtins": sorted(vars(builtins)), "folder": os.getcwd(),
    "environment": dict(os.environ), "descriptors": os.listdir("/proc/self/fd"),
    "recursion": sys.getrecursionlimit(),
    "input": [os.get_blocking(0), os.get_inheritable(0)], "affinity": sorted(os.sched_getaffinity(0)),
    "nice": os.nice(0), "limits": [resource.getrlimit(kind) for kind in range(10)],
}))
print(random.random(), numpy.random.rand(), sympy.core.random.random())
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reused(docker_sandbox_settings: DockerSandboxSettings) -> AsyncGenerator[DockerSandbox]:
    sandbox = DockerSandbox(docker_sandbox_settings.model_copy(update={"max_containers": 1, "reuse": True}))
    await sandbox.start()
    yield sandbox
    await sandbox.stop()


async def run(sandbox: DockerSandbox, *scripts: str, pending: str | None = None) -> list[ExecutionResult]:
    """Run each script in one session, and leave ``pending`` without a flush."""
    session = sandbox.session(SessionLimits(run_limit_s=5.0))
    results = []
    for script in scripts:
        await session.invoke(script)
        results.append(await session.flush())
    if pending is not None:
        await session.invoke(pending)
    await session.close()
    return results


async def look(sandbox: DockerSandbox) -> tuple[dict[str, Any], list[str], str | None]:
    (result,) = await run(sandbox, LOOK)
    assert result.status == "ok", result.stderr
    state, numbers = result.stdout.splitlines()
    return json.loads(state), numbers.split(), result.container


@pytest.mark.parametrize(
    "scripts",
    [
        ["x = 1", "import fractions, os; os.chdir('/tmp'); os.environ['A'] = 'b'"],
        [
            "import builtins, json, sys; builtins.print = None; del sys.modules['json']",
            "import sys; sys.setrecursionlimit(99)",
        ],
        [
            "open('/tmp/a', 'w').write('a'); open('/dev/shm/b', 'w')",
            "import os; os.makedirs('/sandbox/c/d', mode=0)",
        ],
        ["import os; os.symlink('/etc', 'link'); os.mkfifo('/tmp/fifo'); f = open('kept', 'w')"],
        ["import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0: time.sleep(100)"],
        ["import threading, time; threading.Thread(target=time.sleep, args=(100,), daemon=True).start()"],
        ["import random, numpy; random.seed(1); numpy.random.seed(1)", "while True: pass"],
        ["import mmap; shared = mmap.mmap(-1, 4096)", "raise ValueError", "import os; os._exit(3)"],
        [
            "import os\n"
            "for name in os.listdir('/proc'):\n"
            " if name.isdigit() and int(name) != os.getpid():\n"
            "  for number in (18, 19, 9):\n"
            "   try: os.kill(int(name), number)\n"
            "   except OSError: pass"
        ],
        ["x = bytearray(2**30)"],
        [
            "import fcntl, os, resource\n"
            "fcntl.flock(0, fcntl.LOCK_EX); os.set_blocking(0, False); os.set_inheritable(0, True)\n"
            "os.nice(3); os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
            "for kind in (resource.RLIMIT_CPU, resource.RLIMIT_STACK):\n"
            " resource.setrlimit(kind, (900000, 900000))"
        ],
    ],
)
async def test_the_next_session_finds_no_trace(reused: DockerSandbox, scripts: list[str]) -> None:
    before, numbers, container = await look(reused)
    await run(reused, *scripts)
    after, other_numbers, same_container = await look(reused)
    assert after == before
    assert container == same_container
    assert not set(numbers) & set(other_numbers)


@pytest.mark.parametrize(
    "change",
    ["os.setpriority(os.PRIO_PROCESS, pid, 19)", "os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})"],
)
async def test_a_container_whose_initial_process_was_changed_is_destroyed(
    reused: DockerSandbox, change: str
) -> None:
    before, _, container = await look(reused)
    if len(before["affinity"]) == 1 and "affinity" in change:
        pytest.skip("one processor")
    script = (
        "import os\n"
        "for name in os.listdir('/proc'):\n"
        " if name.isdigit() and int(name) not in (1, os.getpid()):\n"
        "  pid = int(name)\n"
        f"  {change}; print('changed')\n"
    )
    (result,) = await run(reused, script)
    assert "changed" in result.stdout, result.stderr
    after, _, other_container = await look(reused)
    assert after == before
    assert other_container != container


async def test_pending_blocks_are_dropped(reused: DockerSandbox) -> None:
    before, _, container = await look(reused)
    await run(reused, "x = 1", pending="while True: open('/tmp/a', 'w')")
    after, _, same_container = await look(reused)
    assert (after, container) == (before, same_container)


async def test_calls_are_counted_from_one_again(reused: DockerSandbox) -> None:
    for _ in range(2):
        first, second = await run(reused, "1 / 0", "1 / 0")
        assert '"<call 1>"' in first.stderr
        assert '"<call 2>"' in second.stderr


async def test_a_container_is_not_reused_during_a_flush(reused: DockerSandbox) -> None:
    _, _, container = await look(reused)
    session = reused.session(SessionLimits(run_limit_s=20.0))
    await session.invoke("import time; time.sleep(15)")
    flush = asyncio.create_task(session.flush())
    await asyncio.sleep(0.1)
    await session.close()
    await asyncio.gather(flush, return_exceptions=True)
    _, _, other_container = await look(reused)
    assert other_container != container


async def test_without_reuse_each_session_has_its_own_container(
    docker_sandbox_settings: DockerSandboxSettings,
) -> None:
    sandbox = DockerSandbox(docker_sandbox_settings.model_copy(update={"max_containers": 2}))
    await sandbox.start()
    try:
        assert len({(await look(sandbox))[2] for _ in range(2)}) == 2
        assert sandbox.stats().reused == 0
    finally:
        await sandbox.stop()
