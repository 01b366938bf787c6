"""The cgroup freezer: with files in place of cgroups, and with real containers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import docker
import pytest

from service.sandbox.base import Session, SessionLimits
from service.sandbox.docker.container import Container
from service.sandbox.docker.freezer import DEFAULT_ROOT, Freezer, FreezerCgroup
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings
from service.sandbox.session import PooledSession
from tests.support.until import until

ID = "0123456789abcdef" * 4
LIMITS = SessionLimits(run_limit_s=60.0)
LAYOUTS = {
    "v1": (f"freezer/docker/{ID}", 1),
    "v1 systemd": (f"freezer/system.slice/docker-{ID}.scope", 1),
    "v2": (f"docker/{ID}", 2),
    "v2 systemd": (f"system.slice/docker-{ID}.scope", 2),
    "v1 podman": (f"freezer/libpod_parent/libpod-{ID}", 1),
    "v2 podman": (f"libpod_parent/libpod-{ID}", 2),
    "v2 podman systemd": (f"machine.slice/libpod-{ID}.scope", 2),
}


def make_cgroup(root: Path, layout: str, *, freezes: bool = True) -> FreezerCgroup:
    """Make the files of a cgroup. If it ``freezes``, it looks frozen after each write."""
    folder, version = LAYOUTS[layout]
    (root / folder).mkdir(parents=True)
    if version == 1:
        (root / folder / "freezer.state").write_text("THAWED")
        if not freezes:
            (root / folder / "freezer.state").unlink()
            (root / folder / "freezer.state").symlink_to("/dev/null")
    else:
        (root / folder / "cgroup.freeze").write_text("0")
        (root / folder / "cgroup.events").write_text(f"populated 1\nfrozen {int(freezes)}\n")
    return FreezerCgroup(root / folder, version)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_finds_the_cgroup_under_both_versions_and_drivers(tmp_path: Path, layout: str) -> None:
    made = make_cgroup(tmp_path, layout)
    assert FreezerCgroup.find(tmp_path, ID) == made
    made.freeze()
    assert made.state_file.read_text() == ("FROZEN" if made.version == 1 else "1")
    assert made.is_frozen()
    made.thaw()
    assert made.state_file.read_text() == ("THAWED" if made.version == 1 else "0")
    assert FreezerCgroup.find(tmp_path, "f" * 64) is None


@pytest.mark.parametrize("layout", ["v1", "v2"])
async def test_a_container_that_does_not_freeze_disables_the_freezer(tmp_path: Path, layout: str) -> None:
    make_cgroup(tmp_path, layout, freezes=False)
    freezer = Freezer(tmp_path)
    assert await freezer.attach(ID) is None
    assert "did not freeze" in str(freezer.unavailable)
    assert await freezer.attach(ID) is None
    freezer.close()


async def test_without_the_cgroup_the_reason_is_kept(tmp_path: Path) -> None:
    freezer = Freezer(tmp_path)
    assert await freezer.attach(ID) is None
    assert freezer.unavailable == f"no cgroup of container {ID[:12]} is under {tmp_path}"
    freezer.thaw(ID)  # of any owner; never raises
    freezer.close()


async def test_a_runtime_other_than_the_default_is_not_frozen(tmp_path: Path) -> None:
    make_cgroup(tmp_path, "v2")
    sandbox = DockerSandbox(DockerSandboxSettings(runtime="runsc", cgroup_root=tmp_path))
    assert await sandbox._freezer.attach(ID) is None
    await sandbox.stop()


OWNER = """
import asyncio, os, pathlib, signal, sys
from service.sandbox.docker.freezer import Freezer
async def main():
    freezer = Freezer(pathlib.Path(sys.argv[1]))
    kept, removed = [await freezer.attach(container) for container in sys.argv[2:]]
    kept.freeze()
    removed.freeze()
    freezer.detach(removed)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_the_guard_thaws_the_containers_of_a_killed_owner(tmp_path: Path) -> None:
    kept = make_cgroup(tmp_path, "v2")
    other = FreezerCgroup(tmp_path / "docker" / ("f" * 64), 2)
    other.folder.mkdir()
    other.state_file.write_text("0")
    (other.folder / "cgroup.events").write_text("frozen 1\n")
    killed = subprocess.run(  # noqa: ASYNC221
        [sys.executable, "-c", OWNER, str(tmp_path), ID, "f" * 64], check=False, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    await until(lambda: kept.state_file.read_text() == "0")
    assert other.state_file.read_text() == "1"  # no longer this owner's


async def test_a_dead_guard_disables_the_freezer(tmp_path: Path) -> None:
    make_cgroup(tmp_path, "v2")
    freezer = Freezer(tmp_path)
    assert await freezer.attach(ID) is not None
    assert freezer._guard is not None
    freezer._guard.kill()
    freezer._guard.wait()
    assert await freezer.attach(ID) is None
    assert "Broken pipe" in str(freezer.unavailable)
    freezer.close()


@contextlib.asynccontextmanager
async def frozen_sandbox(settings: DockerSandboxSettings, root: Path) -> AsyncGenerator[DockerSandbox]:
    if not (FreezerCgroup(root / "freezer/docker", 1).state_file.exists() or (root / "docker").exists()):
        pytest.skip(f"no cgroups of Docker under {root}")
    sandbox = DockerSandbox(settings.model_copy(update={"cgroup_root": root}))
    await sandbox.start()
    try:
        if sandbox._freezer.unavailable is not None:
            pytest.skip(sandbox._freezer.unavailable)
        yield sandbox
    finally:
        await sandbox.stop()


def container_of(session: Session) -> Container:
    assert isinstance(session, PooledSession)
    assert isinstance(session._worker, Container)
    return session._worker


def cgroup_of(session: Session) -> FreezerCgroup:
    cgroup = container_of(session)._cgroup
    assert cgroup is not None
    return cgroup


def pids(cgroup: FreezerCgroup) -> list[int]:
    return [int(pid) for pid in (cgroup.folder / "cgroup.procs").read_text().split()]


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("root", [DEFAULT_ROOT, DEFAULT_ROOT / "unified"], ids=["default", "v2"])
class TestContainers:
    async def test_a_container_is_frozen_between_runs_and_keeps_its_state(
        self, docker_sandbox_settings: DockerSandboxSettings, root: Path
    ) -> None:
        async with frozen_sandbox(docker_sandbox_settings, root) as sandbox:
            session = sandbox.session(LIMITS)
            for number in range(3):
                await session.invoke(f"n = {number} if {number} == 0 else n + 1\nprint(n)")
                assert (await session.flush()).stdout == f"{number}\n"
                await until(cgroup_of(session).is_frozen)
                for pid in pids(cgroup_of(session)):
                    os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(0.2)
                assert cgroup_of(session).is_frozen()
            await session.invoke("1 / 0")
            assert (await session.flush()).status == "error"
            await until(cgroup_of(session).is_frozen)
            await session.invoke("print(n)")
            assert (await session.flush()).stdout == "2\n"
            await session.close()

    async def test_eager_blocks_run_while_the_model_writes(
        self, docker_sandbox_settings: DockerSandboxSettings, root: Path
    ) -> None:
        async with frozen_sandbox(docker_sandbox_settings, root) as sandbox:
            session = sandbox.session(LIMITS)
            await session.invoke("x = 1")
            await session.flush()
            await until(cgroup_of(session).is_frozen)
            await session.invoke("import time, os; began = time.time(); time.sleep(1); print('slept')")
            await asyncio.sleep(0.5)
            assert not cgroup_of(session).is_frozen()
            await asyncio.sleep(2)
            await session.invoke("print(x)")
            result = await session.flush()
            assert (result.status, result.stdout, result.eager_fallback) == ("ok", "slept\n1\n", None)
            await session.close()

    async def test_frozen_containers_can_be_killed_and_removed(
        self, docker_sandbox_settings: DockerSandboxSettings, root: Path
    ) -> None:
        client = docker.APIClient(base_url=docker_sandbox_settings.docker_host, version="auto")
        async with frozen_sandbox(docker_sandbox_settings, root) as sandbox:
            killed, closed = (sandbox.session(LIMITS) for _ in range(2))
            for session in (killed, closed):
                await session.invoke("x = 1")
                await session.flush()
                await until(cgroup_of(session).is_frozen)
            names = [container_of(session).name for session in (killed, closed)]
            await asyncio.to_thread(client.kill, names[0])
            await killed.invoke("print(x)")
            assert (await killed.flush()).status == "sandbox_error"
            await killed.invoke("print('x' in globals())")
            assert (await killed.flush()).stdout == "False\n"
            await killed.close()
            await closed.close()
            await until(lambda: not set(names) & all_names(client))
        client.close()


def all_names(client: docker.APIClient) -> set[str]:
    return {name.strip("/") for container in client.containers(all=True) for name in container["Names"]}
