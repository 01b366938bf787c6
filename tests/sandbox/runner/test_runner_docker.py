"""The runner with real containers: recovery when a client, a container or the runner itself dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors
import httpx
import pytest

from service.sandbox.base import SessionLimits
from service.sandbox.docker.freezer import DEFAULT_ROOT, FreezerCgroup
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DEFAULT_IMAGE, DockerSandboxSettings
from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
from tests.sandbox.conftest import Served, process, served
from tests.support.fake_sandbox import TOKEN
from tests.support.until import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
SOAK_CALLS = int(os.environ.get("IHGRPO_SOAK_CALLS", "300"))
LIMITS = SessionLimits(run_limit_s=20.0)
INSTANCE = f"runner-test-{os.getpid()}"
SLEEP = "import time\nprint('asleep', flush=True)\ntime.sleep(15)\n"


@dataclass
class Containers:
    """The sandbox containers with one label."""

    client: docker.APIClient
    label: str

    def ids(self, **filters: object) -> set[str]:
        found = self.client.containers(all=True, filters={"label": [self.label], **filters})
        return {container["Id"] for container in found}

    def kill(self) -> None:
        for container in self.ids():
            with contextlib.suppress(docker.errors.APIError):  # one that is starting or being removed
                self.client.kill(container)


@pytest.fixture
def containers() -> Iterator[Containers]:
    client = docker.APIClient(base_url=DockerSandboxSettings().docker_host, version="auto")
    with contextlib.closing(client):
        # Other pools of this test process exist at the same time, so this one has its own name.
        yield Containers(client, f"ih-grpo.instance={INSTANCE}")


@pytest.fixture
async def runner(tmp_path: Path, containers: Containers) -> AsyncGenerator[Served]:
    """A runner in this process with at most one idle container."""
    sandbox = DockerSandbox(
        DockerSandboxSettings(
            image=os.environ.get("IHGRPO_SANDBOX_IMAGE", DEFAULT_IMAGE),
            pool_size=1,
            max_containers=6,
            queue_timeout_s=300,
            instance=INSTANCE,
            start_timeout_s=300,
            daemon_timeout_s=100,
        )
    )
    async with served(sandbox, f"unix:{tmp_path}/r.sock", max_sessions=4, queue_timeout_s=300) as runner:
        yield runner
    assert containers.ids() == set()


def owned_by(child: asyncio.subprocess.Process, containers: Containers) -> Containers:
    return Containers(containers.client, f"ih-grpo.pid={child.pid}")


@contextlib.asynccontextmanager
async def command(tmp_path: Path) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run ``ih-grpo runner`` in a separate process."""
    token = tmp_path / "token"
    token.write_text(TOKEN.get_secret_value())
    options = ["--bind", f"unix:{tmp_path}/r.sock", "--token-file", token, "--warm-containers", "1"]
    async with process("service", "runner", *options, "--max-sessions", "2") as child:
        yield child


async def connect(tmp_path: Path, child: asyncio.subprocess.Process) -> RunnerClient:
    client = RunnerClient(RunnerClientSettings((f"unix:{tmp_path}/r.sock",), TOKEN, connect_timeout_s=300))
    ended, started = asyncio.create_task(child.wait()), asyncio.create_task(client.start())
    await asyncio.wait({ended, started}, return_when=asyncio.FIRST_COMPLETED)
    assert not ended.done(), "the runner did not start: see its output"
    ended.cancel()
    await started
    return client


async def test_session_with_files_lives_while_it_is_parked(runner: Served, containers: Containers) -> None:
    async def content() -> AsyncGenerator[bytes]:
        for _ in range(5):
            yield b"a,b\n" * 500_000

    session = runner.client.file_session(SessionLimits(run_limit_s=60.0, figures="png", memory_mb=700))
    await session.lease()
    await session.put("data.csv", 10_000_000, content())
    await session.invoke("size = len(open('/inputs/data.csv').read())")
    await session.invoke("open('out.txt', 'w').write('x' * 700_000)")
    result = await session.flush()
    assert result.status == "ok", result
    [file] = (await session.changes()).files
    assert (file.path, file.size) == ("out.txt", 700_000)
    assert b"".join([chunk async for chunk in session.read(file)]) == b"x" * 700_000
    await session.park()
    await session.freeze()
    [container] = [one for one in containers.ids() if _memory(containers, one) == (700 + 10) << 20]
    await session.configure(SessionLimits(run_limit_s=50.0, eager=False, figures="png"))
    await session.invoke("print(size, open('out.txt').read(1))")
    assert (await session.flush()).stdout == "10000000 x\n"
    containers.client.kill(container)
    await session.invoke("print(1)")
    assert (await session.flush()).status == "sandbox_error"
    assert not session.is_alive
    await session.close()


def _memory(containers: Containers, container: str) -> int:
    limit: int = containers.client.inspect_container(container)["HostConfig"]["Memory"]
    return limit


async def test_sessions_have_separate_namespaces(runner: Served) -> None:
    one, two = runner.client.session(LIMITS), runner.client.session(LIMITS)
    await one.invoke("x = 1")
    await two.invoke("x = 2")
    await two.invoke("print(x, flush=True)\n1 / 0")
    assert (await one.flush()).status == "ok"
    failed = await two.flush()
    assert (failed.status, failed.stdout) == ("error", "2\n")
    assert "ZeroDivisionError" in failed.stderr
    for session, expected in ((one, "1\n"), (two, "rolled back\n")):
        await session.invoke("print(globals().get('x', 'rolled back'))")
        assert (await session.flush()).stdout == expected
        await session.close()


async def test_the_run_limit_ceiling_applies_in_the_container(tmp_path: Path) -> None:
    sandbox = DockerSandbox(
        DockerSandboxSettings(pool_size=1, instance=f"test-{os.getpid()}", start_timeout_s=300)
    )
    async with served(sandbox, f"unix:{tmp_path}/r.sock", max_run_limit_s=1.0) as runner:
        session = runner.client.session(SessionLimits(run_limit_s=3600.0))
        await session.invoke("while True: pass")
        assert (await session.flush()).status == "timeout"


async def test_a_disconnect_during_a_flush_removes_the_container(
    runner: Served, containers: Containers
) -> None:
    idle = containers.ids()
    session = runner.client.session(LIMITS)
    await session.invoke(SLEEP)
    flush = asyncio.create_task(session.flush())
    await asyncio.sleep(0.1)
    flush.cancel()  # cuts the connection
    await asyncio.gather(flush, return_exceptions=True)
    await until(lambda: not idle & containers.ids())


async def test_a_container_killed_from_outside_causes_one_error(
    runner: Served, containers: Containers
) -> None:
    session = runner.client.session(LIMITS)
    await session.invoke("x = 1")
    assert (await session.flush()).status == "ok"
    await session.invoke(SLEEP)
    flush = asyncio.create_task(session.flush())
    containers.kill()
    result = await flush
    assert (result.status, result.stdout) == ("sandbox_error", "")
    await session.invoke("print('x' in globals())")
    assert (await session.flush()).stdout == "False\n"


async def test_a_killed_runner_causes_one_error_and_its_orphans_are_removed(
    tmp_path: Path, containers: Containers
) -> None:
    async with command(tmp_path) as first:
        client = await connect(tmp_path, first)
        session = client.session(LIMITS)
        await session.invoke("x = 1")
        assert (await session.flush()).status == "ok"
        await session.invoke("x += 1\n" + SLEEP)
        flush = asyncio.create_task(session.flush())
        await asyncio.sleep(0.1)
        first.kill()
        result = await flush
        assert (result.status, result.stdout) == ("sandbox_error", "")
    async with command(tmp_path) as second:
        await session.invoke("print(globals().get('x'))")  # nothing ran twice
        assert (await session.flush()).stdout == "None\n"
        assert owned_by(first, containers).ids() == set()
        await client.stop()
        second.terminate()
        await second.wait()
        assert owned_by(second, containers).ids() == set()


@pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning"
)  # anyio, if a Unix socket refuses the connection
async def test_frozen_containers_of_a_killed_runner_end(tmp_path: Path, containers: Containers) -> None:
    async with command(tmp_path) as child:
        client = await connect(tmp_path, child)
        session = client.session(LIMITS)
        try:
            await session.invoke("x = 1")
            assert (await session.flush()).status == "ok"
            mine = owned_by(child, containers)
            found = {name: FreezerCgroup.find(DEFAULT_ROOT, name) for name in mine.ids()}
            cgroups = {name: cgroup for name, cgroup in found.items() if cgroup is not None}
            if not cgroups:
                pytest.skip("the cgroups of the containers are not reachable")
            await until(lambda: any(cgroup.is_frozen() for cgroup in cgroups.values()))
            child.kill()
            # Without a new runner. A container that was starting is removed by the next one.
            await until(lambda: not cgroups.keys() & mine.ids(), timeout_s=150)
        finally:
            await session.close()
            await client.stop()


@pytest.mark.slow
async def test_twenty_concurrent_sessions_stay_separate(runner: Served) -> None:
    async def episode(number: int) -> list[str]:
        session = runner.client.session(LIMITS)
        outputs = []
        for code in (
            f"n = {number}; print(n)",
            "n += 100; _ = open('f', 'w').write(str(n))",
            "print(n, open('f').read())",
        ):
            await session.invoke(code)
            outputs.append((await session.flush()).stdout)
        await session.close()
        return outputs

    answers = await asyncio.gather(*(episode(number) for number in range(20)))
    for number, answer in enumerate(answers):
        assert answer == [f"{number}\n", "", f"{number + 100} {number + 100}\n"]


SOAK = [
    ("print(sum(range(100)))", "ok"),
    ("x = list(range(100_000))", "ok"),
    ("raise ValueError", "error"),
    ("print('y' * 200_000)", "ok"),
    ("import os; os._exit(3)", "error"),
    ("import subprocess; print(len(subprocess.run(['ls', '/'], capture_output=True).stdout) > 0)", "ok"),
]


@pytest.mark.slow
@pytest.mark.timeout(60 + 2 * SOAK_CALLS)
async def test_memory_descriptors_and_containers_stay_constant_over_many_calls(
    tmp_path: Path, containers: Containers
) -> None:
    """Run ``IHGRPO_SOAK_CALLS`` calls (default 300), with a new session every ten calls."""
    async with command(tmp_path) as child:
        client = await connect(tmp_path, child)
        mine = owned_by(child, containers)
        seen: list[dict[str, float]] = []
        for number in range(0, SOAK_CALLS, 10):
            session = client.session(LIMITS)
            for call in range(number, number + 10):
                code, status = SOAK[call % len(SOAK)]
                await session.invoke(code)
                result = await session.flush()
                assert result.status == status, result
            await session.close()
            seen.append(await usage(tmp_path, len(mine.ids())))
        await client.stop()
        child.terminate()
        assert await child.wait() in (0, -15)
        assert mine.ids() == set()
    early, late = seen[len(seen) // 5], seen[-1]
    print(f"after {SOAK_CALLS // 5} calls: {early}\nafter {SOAK_CALLS} calls: {late}")
    assert max(found["containers"] for found in seen) <= 4
    assert late["process_open_fds"] <= early["process_open_fds"] + 8  # a start or a removal may be under way
    assert late["process_resident_memory_bytes"] <= early["process_resident_memory_bytes"] + 16 * 2**20


async def usage(tmp_path: Path, count: int) -> dict[str, float]:
    transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "r.sock"))
    headers = {"Authorization": f"Bearer {TOKEN.get_secret_value()}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://runner", headers=headers) as http:
        text = (await http.get("/metrics")).text
    values = {name: float(value) for name, value in re.findall(r"^(process_\w+) (\S+)$", text, re.MULTILINE)}
    return {**values, "containers": count}
