"""Cases that need several calls, several tenants or an action from outside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial

import docker
import pytest

from service.sandbox.base import Session, SessionLimits
from service.sandbox.docker.container import Container
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings
from service.sandbox.session import PooledSession
from tests.support.until import until

from .test_cases import run

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="session")]

LIMITS = SessionLimits(run_limit_s=20)


@pytest.fixture
def client(docker_sandbox_settings: DockerSandboxSettings) -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=docker_sandbox_settings.docker_host, version="auto")
    with contextlib.closing(client):
        yield client


def container_of(session: Session) -> str:
    assert isinstance(session, PooledSession)
    assert isinstance(session._worker, Container)
    return session._worker.id


async def gone(client: docker.APIClient, container: str) -> bool:
    for _ in range(600):
        if not client.containers(all=True, filters={"id": container}):
            return True
        await asyncio.sleep(0.1)
    return False


async def test_h17_head_and_tail_of_a_long_line_are_kept(sandbox: DockerSandbox) -> None:
    session = sandbox.session(LIMITS)
    result = await run(session, "print('head' + 'x' * 50_000_000 + 'tail')")
    await session.close()
    assert result.status == "ok"
    assert result.stdout.startswith("headxxx")
    assert result.stdout.endswith("xxxtail\n")
    assert "bytes left out" in result.stdout
    assert len(result.stdout) < 70_000


async def test_h24_only_the_worker_is_left_in_the_container(
    sandbox: DockerSandbox, client: docker.APIClient
) -> None:
    session = sandbox.session(LIMITS)
    code = (
        "import os, subprocess, threading, time\n"
        "for _ in range(3):\n    if not os.fork():\n        os.setsid()\n        time.sleep(600)\n"
        "subprocess.Popen(['sleep', '600'])\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
    )
    assert (await run(session, code)).status == "ok"
    assert (await run(session, "import threading\nprint(threading.active_count())")).stdout == "1\n"
    # The supervisor, the namespace, and its checkpoint, which is forked after the result is sent.
    await until(lambda: len(client.top(container_of(session))["Processes"]) == 3)
    await session.close()


async def test_h64_tenants_share_nothing(sandbox: DockerSandbox) -> None:
    neighbour = sandbox.session(LIMITS)
    await run(neighbour, "import random\nsecret = 42\nrandom.seed(7)\nfirst = random.random()")
    session = sandbox.session(LIMITS)
    assert (await run(session, "print('secret' in globals())")).stdout == "False\n"
    await run(
        session,
        "import os, random\nsecret = 1\nos.environ['MARK'] = open('/tmp/mark', 'w').name\nrandom.seed(0)",
    )
    seen = await run(
        neighbour,
        "import os\nprint(secret, os.environ.get('MARK'), os.listdir('/tmp'), random.random() != first)",
    )
    assert seen.stdout == "42 None [] True\n"
    failed = await run(
        session, "secret = 2\nos.environ['MARK'] = 'changed'\nos.unlink('/tmp/mark')\nos.chdir('/tmp')\n1 / 0"
    )
    assert failed.status == "error"
    after = await run(session, "print(secret, os.environ['MARK'], os.listdir('/tmp'), os.getcwd())")
    assert after.stdout == "1 /tmp/mark ['mark'] /sandbox\n"
    await session.close()
    await neighbour.close()


async def test_h64_a_failed_call_restores_files(sandbox: DockerSandbox) -> None:
    session = sandbox.session(LIMITS)
    make = (
        "import os\n"
        "os.makedirs('d/e')\nopen('d/e/f', 'w').write('one')\nos.symlink('d', 'link')\nos.chmod('d/e/f', 0o400)\n"
        "os.mkfifo('pipe')\nopen('/dev/shm/s', 'w').write('shared')\nlog = open('log', 'w'); log.write('begun '); log.flush()"
    )
    assert (await run(session, make)).status == "ok"
    break_all = (
        "import shutil\nos.chmod('d/e/f', 0o600); open('d/e/f', 'w').write('two')\nos.unlink('link'); os.mkdir('link')\n"
        "shutil.move('d', 'moved')\nos.unlink('pipe')\nopen('/dev/shm/s', 'a').write('more')\nos.mkdir('closed', 0)\n1 / 0"
    )
    assert (await run(session, break_all)).status == "error"
    look = (
        "import stat\nlog.write('ended'); log.flush()\n"
        "print(sorted(os.listdir('.')), open('link/e/f').read(), oct(os.stat('d/e/f').st_mode & 0o777),\n"
        "      stat.S_ISFIFO(os.stat('pipe').st_mode), open('/dev/shm/s').read(), open('log').read())"
    )
    assert (await run(session, look)).stdout == (
        "['d', 'link', 'log', 'pipe'] one 0o400 True shared begun ended\n"
    )
    await session.close()


async def test_h64_a_failed_call_restores_the_content_and_the_offset_of_an_open_file(
    sandbox: DockerSandbox,
) -> None:
    """The offset belongs to the kernel's open file, which both copies of the namespace share."""
    session = sandbox.session(LIMITS)
    assert (await run(session, "log = open('log', 'w+')\nlog.write('one')\nlog.flush()")).status == "ok"
    assert (await run(session, "log.write('two')\nlog.flush()\n1 / 0")).status == "error"
    assert (await run(session, "print(open('log').read())")).stdout == "one\n"
    after = await run(session, "log.write('three')\nlog.seek(0)\nprint(log.read())")
    assert after.stdout == "onethree\n"
    await session.close()


EARLY_REPLIES = """
import gc, os, socket
worker = next(o for o in gc.get_objects() if type(o).__name__ == 'Namespace' and hasattr(o, 'keep_away'))
def receive():
    header, fds, *_ = socket.recv_fds(worker.control, 13, 2)
    return header[1:9], fds
worker.control.sendall(worker.token + b'd')  # the block has ended
token, _ = receive()
worker.control.sendall(token + b'f')  # the script has ended
token, fds = receive()  # fork a checkpoint
if os.fork() == 0:
    socket.socket(fileno=fds[0]).sendall(token + b'k')
while True: pass
"""


async def test_h75_code_that_answers_for_its_worker_is_stopped(
    sandbox: DockerSandbox, client: docker.APIClient
) -> None:
    """Code can write any reply, but a reply stops it."""
    session = sandbox.session(LIMITS)
    assert (await run(session, EARLY_REPLIES)).status == "ok"
    states = partial(processes, client, container_of(session))
    # Stopped, or killed together with the process that it forked.
    await until(lambda: all(at_rest(state) for state, _ in states()[1:]))
    used = [cpu for _, cpu in states()[1:]]
    await asyncio.sleep(3)
    assert [cpu for _, cpu in states()[1:]] == used
    # The next call is that code's as well, within its limit.
    assert (await run(session, "print('unreachable')")).status in ("timeout", "sandbox_error")
    await session.close()


async def test_h76_a_fork_hook_does_not_run_between_calls(
    sandbox: DockerSandbox, client: docker.APIClient
) -> None:
    session = sandbox.session(LIMITS)
    hook = (
        "import os, posix, threading, time\n"
        "def work():\n    while True: open('/tmp/alive', 'a').write('x'); time.sleep(0.01)\n"
        "for register in (os.register_at_fork, posix.register_at_fork):\n"
        "    register(after_in_child=lambda: threading.Thread(target=work, daemon=True).start())\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    assert (await run(session, hook)).status == "ok"
    states = partial(processes, client, container_of(session))
    await until(lambda: [at_rest(state) for state, _ in states()[1:]] == [True, True])
    await asyncio.sleep(0.5)
    assert (await run(session, "print(os.path.exists('/tmp/alive'))")).stdout == "False\n"
    await session.close()


def processes(client: docker.APIClient, container: str) -> list[tuple[str, str]]:
    """The state and the CPU time of each process of a container; the supervisor comes first."""
    rows = client.top(container, ps_args="-eo pid,stat,cputime")["Processes"]
    return [(state, cpu) for _, state, cpu in sorted(rows, key=lambda row: int(row[0]))]


def at_rest(state: str) -> bool:
    """Stopped by a signal (T), or frozen with its cgroup: version 1 shows that as D."""
    return state[0] in "TD"


async def test_h65_a_container_killed_from_outside_is_reported_once(
    sandbox: DockerSandbox, client: docker.APIClient
) -> None:
    session = sandbox.session(LIMITS)
    await run(session, "x = 1")
    container = container_of(session)
    await session.invoke("import time\ntime.sleep(15)\nprint('done')")
    flush = asyncio.create_task(session.flush())
    await asyncio.sleep(0.2)
    await asyncio.to_thread(client.kill, container)
    broken = await flush
    assert (broken.status, broken.stdout) == ("sandbox_error", "")
    assert (await run(session, "print('x' in globals())")).stdout == "False\n"
    assert await gone(client, container)
    await session.close()


async def test_h66_benign_calls_succeed_beside_hostile_ones(sandbox: DockerSandbox) -> None:
    hostile = [
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "x = bytearray(b'x') * 10**10",
        "while True: print('x' * 10**6)",
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass",
    ]

    async def attack(code: str) -> str:
        session = sandbox.session(SessionLimits(run_limit_s=2))
        try:
            return (await run(session, code)).status
        finally:
            await session.close()

    async def work(number: int) -> list[str]:
        session = sandbox.session(LIMITS)
        try:
            return [(await run(session, f"n = {number} + {i}\nprint(n)")).stdout for i in range(5)]
        finally:
            await session.close()

    attacks = asyncio.gather(*(attack(code) for code in hostile))
    worked = await asyncio.gather(*(work(100 * n) for n in range(6)))
    assert worked == [[f"{100 * n + i}\n" for i in range(5)] for n in range(6)]
    assert "ok" not in await attacks


async def test_h68_a_cancelled_call_is_killed_and_its_container_released(
    sandbox: DockerSandbox, client: docker.APIClient
) -> None:
    session = sandbox.session(LIMITS)
    await run(session, "x = 1")
    container = container_of(session)
    await session.invoke("while True: pass")
    flush = asyncio.create_task(session.flush())
    await asyncio.sleep(0.2)
    flush.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flush
    await session.close()
    assert await gone(client, container)


async def test_a_closed_session_leaves_no_container(sandbox: DockerSandbox, client: docker.APIClient) -> None:
    session = sandbox.session(LIMITS)
    await session.invoke("while True: pass")  # pending, never flushed
    container = container_of(session)
    await session.close()
    assert await gone(client, container)
