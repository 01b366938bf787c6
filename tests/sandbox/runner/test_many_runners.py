"""Several runners: in this process, and as processes that are killed, stopped, filled and drained."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.sandbox.base import QueueTimeoutError, SandboxError, SessionLimits
from service.sandbox.runner.client import RunnerClient, RunnerClientSettings, RunnerSession
from service.sandbox.runner.hosts import RunnerStatus
from tests.sandbox.conftest import Served, served
from tests.support.fake_sandbox import TOKEN, FakeSandbox
from tests.support.until import until

LIMITS = SessionLimits(run_limit_s=60.0)


@contextlib.asynccontextmanager
async def client_of(*addresses: str, **options: object) -> AsyncGenerator[RunnerClient]:
    settings = RunnerClientSettings(
        addresses, TOKEN, connect_timeout_s=60.0, check_interval_s=0.2, ping_interval_s=2.0
    )
    client = RunnerClient(replace(settings, **options))  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.stop()


@contextlib.asynccontextmanager
async def three(tmp_path: Path, *options: dict[str, object]) -> AsyncGenerator[list[Served]]:
    """Three runners in this process, each with its own options."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                served(FakeSandbox(), f"unix:{tmp_path}/{number}.sock", **(options or ({}, {}, {}))[number])
            )
            for number in range(3)
        ]


def addresses_of(runners: list[Served]) -> list[str]:
    return [runner.settings.bind for runner in runners]


def active(runners: list[Served]) -> list[int]:
    return [len(runner.sandbox.active) for runner in runners]


async def hold(client: RunnerClient, number: int) -> list[RunnerSession]:
    sessions = [client.session(LIMITS) for _ in range(number)]
    await asyncio.gather(*(session.invoke("set held") for session in sessions))
    return sessions


async def test_concurrent_sessions_spread_by_capacity(tmp_path: Path) -> None:
    options: list[dict[str, object]] = [{"max_sessions": n} for n in (2, 4, 6)]
    async with three(tmp_path, *options) as runners, client_of(*addresses_of(runners)) as client:
        await client.start()
        await until(lambda: all(status.up for status in client.runners()))
        sessions = await hold(client, 12)
        assert active(runners) == [2, 4, 6]
        assert [status.sessions for status in client.runners()] == [2, 4, 6]
        for session in sessions:
            await session.close()
        assert active(runners) == [0, 0, 0]
        assert [status.sessions for status in client.runners()] == [0, 0, 0]


async def test_sessions_of_another_client_count(tmp_path: Path) -> None:
    async with (
        three(tmp_path) as runners,
        client_of(runners[0].settings.bind) as other,
        client_of(*addresses_of(runners)) as client,
    ):
        await hold(other, 10)
        await client.start()
        await until(lambda: client.runners()[0].load > 0)
        await hold(client, 6)
        assert active(runners) == [10, 3, 3]


async def test_a_full_runner_is_left_for_another_one(tmp_path: Path) -> None:
    full: dict[str, object] = {"max_sessions": 1, "max_waiting": 0}
    async with three(tmp_path, full, full, full) as runners, client_of(*addresses_of(runners)) as client:
        # Not started, so the client does not know the loads.
        sessions = await hold(client, 3)
        assert active(runners) == [1, 1, 1]
        late = client.session(LIMITS)
        with pytest.raises(QueueTimeoutError, match="full"):
            await late.invoke("print 1")
        await sessions[1].close()
        await late.invoke("print later")
        assert (await late.flush()).stdout == "later\n"
        assert active(runners) == [1, 1, 1]


async def test_a_runner_without_containers_is_left_for_another_one(tmp_path: Path) -> None:
    async with three(tmp_path) as runners, client_of(*addresses_of(runners)) as client:
        broken = runners[0].sandbox

        async def no_container(code: str) -> None:
            raise SandboxError("no worker could be started")

        session = client.session(LIMITS)
        await session.prepare()
        await until(lambda: broken.sessions)
        broken.sessions[0].invoke = no_container
        await session.invoke("print elsewhere")
        assert (await session.flush()).stdout == "elsewhere\n"
        assert broken.ran == []


async def test_a_draining_runner_costs_nothing(tmp_path: Path) -> None:
    async with three(tmp_path) as runners, client_of(*addresses_of(runners)) as client:
        await client.start()
        working, announced = await hold(client, 3), [client.session(LIMITS) for _ in range(3)]
        for session in announced:
            await session.prepare()
        await until(lambda: all(len(runner.sandbox.sessions) == 2 for runner in runners))
        runners[0].server.runner.close_admission()
        for session in announced:
            await session.invoke("print moved")
            assert (await session.flush()).stdout == "moved\n"
        for session in working:
            await session.invoke("get")
            assert (await session.flush()).stdout == "held\n"
        assert active(runners)[0] == 1
        await until(lambda: client.runners()[0].draining)
        await hold(client, 4)
        assert active(runners)[0] == 1


async def test_a_runner_with_another_token_is_not_used(tmp_path: Path) -> None:
    async with three(tmp_path) as runners, client_of(*addresses_of(runners)) as client:
        runners[0].server.runner.settings = runners[0].settings.model_copy(
            update={"token": SecretStr("quite-another-token")}
        )
        await hold(client, 4)
        assert active(runners) == [0, 2, 2]
        assert [status.up for status in client.runners()] == [False, True, True]
        assert client.runners()[0].failures >= 1


async def test_a_session_that_was_only_announced_survives_its_runner(tmp_path: Path) -> None:
    bind = f"unix:{tmp_path}/kept.sock"
    async with served(FakeSandbox(), bind), client_of(f"unix:{tmp_path}/0.sock", bind) as client:
        async with served(FakeSandbox(), f"unix:{tmp_path}/0.sock", drain_s=0.0) as first:
            session = client.session(LIMITS)
            await session.prepare()
            await until(lambda: len(first.sandbox.sessions) == 1)
        await session.invoke("print elsewhere")
        assert (await session.flush()).stdout == "elsewhere\n"


@dataclass
class RunnerProcess:
    """A runner with a fake sandbox, in a separate process."""

    address: str
    process: asyncio.subprocess.Process
    log: Path

    def ran(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@dataclass
class Network:
    """Three places for runners. ``prefixes`` are the commands that run a program there."""

    addresses: list[str]
    prefixes: list[list[str]]


@pytest.fixture(params=["loopback", "namespaces"])
def network(request: pytest.FixtureRequest, unused_tcp_port_factory: object) -> Iterator[Network]:
    if request.param == "loopback":
        ports = [unused_tcp_port_factory() for _ in range(3)]  # type: ignore[operator]
        yield Network([f"127.0.0.1:{port}" for port in ports], [[], [], []])
        return
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    names = [f"ihg{os.getpid() % 100_000}-{number}" for number in range(3)]
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(names):
            subnet = f"10.213.{os.getpid() % 250}.{4 * number}"
            commands = [
                f"ip netns add {name}",
                f"ip link add {name} type veth peer name inner netns {name}",
                f"ip address add {_plus(subnet, 1)}/30 dev {name}",
                f"ip link set {name} up",
                f"ip -n {name} address add {_plus(subnet, 2)}/30 dev inner",
                f"ip -n {name} link set inner up",
            ]
            for command in commands:
                done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"no network namespaces: {done.stderr.strip()}")
                if command.startswith("ip netns add"):
                    stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        subnets = [f"10.213.{os.getpid() % 250}.{4 * number}" for number in range(3)]
        yield Network(
            [f"{_plus(subnet, 2)}:8090" for subnet in subnets],
            [["ip", "netns", "exec", name] for name in names],
        )


def _plus(address: str, number: int) -> str:
    head, _, last = address.rpartition(".")
    return f"{head}.{int(last) + number}"


@contextlib.asynccontextmanager
async def processes(
    network: Network, tmp_path: Path, options: list[list[str]]
) -> AsyncGenerator[list[RunnerProcess]]:
    started: list[RunnerProcess] = []
    try:
        for number, address in enumerate(network.addresses):
            log = tmp_path / f"log-{number}"
            child = await asyncio.create_subprocess_exec(
                *network.prefixes[number], sys.executable, "-m", "tests.support.fake_sandbox",
                address, str(log), *options[number],
            )  # fmt: skip
            started.append(RunnerProcess(address, child, log))
        yield started
    finally:
        for runner in started:
            with contextlib.suppress(ProcessLookupError):
                runner.process.kill()
            await runner.process.wait()


async def wait_for_all(client: RunnerClient) -> None:
    await client.start()
    await until(lambda: all(status.up and status.load >= 0 for status in client.runners()))
    async with asyncio.timeout(60):
        while any((await client.problems()).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def episode(client: RunnerClient, name: str, calls: int) -> list[str]:
    """Return the status of each call. Each call depends on the one before, unless that one failed."""
    session = client.session(LIMITS)
    statuses = []
    stored = "nothing"
    for call in range(calls):
        await session.invoke("get")
        await session.invoke(f"set {name}-{call}")
        await session.invoke("sleep 0.05")
        result = await session.flush()
        statuses.append(result.status)
        if result.status == "ok":
            assert result.stdout == f"{stored}\n", "state of another session or of a lost one"
            stored = f"{name}-{call}"
        else:
            stored = "nothing"
    await session.close()
    return statuses


@pytest.mark.slow
async def test_runners_that_are_killed_hang_or_are_full(network: Network, tmp_path: Path) -> None:
    full = ["max_sessions=1", "max_waiting=0"]
    async with (
        processes(network, tmp_path, [[], [], full]) as runners,
        client_of(*network.addresses) as client,
    ):
        await wait_for_all(client)
        holders = await hold_on(client, runners[2])
        episodes = [asyncio.create_task(episode(client, f"e{n}", 40)) for n in range(12)]
        await until(lambda: all(len(runner.ran()) > 40 for runner in runners[:2]))
        runners[0].process.kill()
        await until(lambda: not status_of(client, runners[0]).up)
        before = len(runners[1].ran())
        await until(lambda: len(runners[1].ran()) > before + 100)
        runners[1].process.send_signal(signal.SIGSTOP)
        await until(lambda: not status_of(client, runners[1]).up)
        runners[1].process.send_signal(signal.SIGCONT)
        results = await asyncio.gather(*episodes)
        counts = Counter(status for statuses in results for status in statuses)
        assert set(counts) <= {"ok", "sandbox_error"}
        # Each episode was on each of the two runners at most once when it failed.
        assert all(statuses.count("sandbox_error") <= 2 for statuses in results)
        assert 1 <= counts["sandbox_error"] <= 24
        assert all(len(statuses) == 40 for statuses in results)
        for session in holders:
            await session.invoke("get")
            assert (await session.flush()).stdout == "held\n"
        assert all(not block.startswith("set e") for block in runners[2].ran())


async def hold_on(client: RunnerClient, runner: RunnerProcess) -> list[RunnerSession]:
    """Fill ``runner`` with sessions of another client."""
    own = RunnerClient(RunnerClientSettings((runner.address,), TOKEN))
    sessions = await hold(own, 1)
    await until(lambda: status_of(client, runner).load >= 1)
    return sessions


def status_of(client: RunnerClient, runner: RunnerProcess) -> RunnerStatus:
    return next(status for status in client.runners() if status.address == runner.address)


@pytest.mark.slow
async def test_a_runner_that_hangs_costs_one_call_and_is_used_again(network: Network, tmp_path: Path) -> None:
    async with (
        processes(network, tmp_path, [[], [], []]) as runners,
        client_of(*network.addresses) as client,
    ):
        await wait_for_all(client)
        sessions = await hold(client, 3)
        for session in sessions:
            assert (await session.flush()).status == "ok"
        runners[1].process.send_signal(signal.SIGSTOP)
        results = []
        for session in sessions:
            await session.invoke("get")
            results.append((await session.flush()).status)
        assert sorted(results) == ["ok", "ok", "sandbox_error"]
        for session in sessions:
            await session.invoke("print on")
            assert (await session.flush()).stdout == "on\n"
        assert not status_of(client, runners[1]).up
        runners[1].process.send_signal(signal.SIGCONT)
        await until(lambda: status_of(client, runners[1]).up)
        before = len(runners[1].ran())
        for session in await hold(client, 6):
            assert (await session.flush()).status == "ok"
        assert len(runners[1].ran()) > before


@pytest.mark.slow
async def test_drain_command_waits_for_open_sessions(network: Network, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN.get_secret_value())
    async with (
        processes(network, tmp_path, [[], [], []]) as runners,
        client_of(*network.addresses) as client,
    ):
        await wait_for_all(client)
        sessions = await hold(client, 3)

        async def command(option: str) -> asyncio.subprocess.Process:
            arguments = ["--bind", runners[0].address, "--token-file", str(token)]
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "service", "runner", option, *arguments, stdout=subprocess.PIPE
            )

        drain = await command("--drain")
        assert drain.stdout is not None
        assert b"1 sessions are open" in await drain.stdout.readline()
        await until(lambda: status_of(client, runners[0]).draining)
        more = await hold(client, 4)
        for session in sessions + more:
            assert (await session.flush()).status == "ok"
        assert len(runners[0].ran()) == 1
        for session in sessions:
            await session.close()
        assert b"can be stopped" in await drain.stdout.read()
        assert await drain.wait() == 0
        assert await (await command("--resume")).wait() == 0
        await until(lambda: not status_of(client, runners[0]).draining)
        runners[0].process.send_signal(signal.SIGUSR1)
        await until(lambda: status_of(client, runners[0]).draining)
