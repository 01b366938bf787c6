"""Faults of Docker and of disks, tested on a separate Docker daemon with a small disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from service.sandbox.base import ExecutionResult, SandboxError, Session, SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings
from tests.support.until import until

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPTS = Path(__file__).parents[2] / "scripts"
LIMITS = SessionLimits(run_limit_s=30)
SLEEP = "x += 1\nprint('begun', flush=True)\nimport time\ntime.sleep(20)\n"


@dataclass
class OwnDaemon:
    """A second dockerd with its own directories, bridge and disk."""

    folder: Path

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/run/docker.sock"

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    def script(self, name: str, *arguments: str) -> None:
        mine = {
            "IHGRPO_DOCKER_ROOT": str(self.disk / "docker"),
            "IHGRPO_DOCKER_RUN": str(self.folder / "run"),
            "IHGRPO_DOCKER_BRIDGE": "ihgrpo-faults",
            "IHGRPO_DOCKER_SUBNET": "172.31.253.1/24",
        }
        subprocess.run([SCRIPTS / name, *arguments], env={**os.environ, **mine}, check=True)

    def kill(self) -> None:
        os.kill(int((self.folder / "run/docker.pid").read_text()), signal.SIGKILL)

    def containers(self) -> int:
        """Return the number of containers. A restarted Docker 20.10 still lists removed ones as "dead"."""
        with contextlib.closing(docker.APIClient(base_url=self.host, version="auto")) as client:
            return sum(container["State"] != "dead" for container in client.containers(all=True))


@pytest.fixture(scope="module")
def daemon() -> Iterator[OwnDaemon]:
    if os.geteuid() or shutil.which("dockerd") is None:
        pytest.skip("only root can start a Docker daemon")
    settings = DockerSandboxSettings()
    folder = Path(tempfile.mkdtemp(prefix="ihgrpo-"))  # short: a socket's path has at most 107 characters
    daemon = OwnDaemon(folder)
    daemon.disk.mkdir()
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(3 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, daemon.disk], check=True)
    try:
        daemon.script("ensure-docker", "--own")
        save = subprocess.Popen(
            ["docker", "--host", settings.docker_host, "save", settings.image], stdout=subprocess.PIPE
        )
        subprocess.run(["docker", "--host", daemon.host, "load"], stdin=save.stdout, check=True)
        assert save.stdout is not None
        save.stdout.close()
        assert save.wait() == 0
        yield daemon
    finally:
        daemon.script("stop-docker")
        subprocess.run(["umount", "--lazy", daemon.disk], check=True)
        shutil.rmtree(folder)


def sandbox_on(daemon: OwnDaemon) -> DockerSandbox:
    return DockerSandbox(
        DockerSandboxSettings(
            docker_host=daemon.host,
            instance=f"faults-{os.getpid()}",
            pool_size=1,
            max_containers=8,
            queue_timeout_s=8,
            start_timeout_s=300,
            grace_s=20,
        )
    )


async def run(session: Session, code: str) -> ExecutionResult:
    await session.invoke(code)
    return await session.flush()


# docker-py leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_recovers_after_a_restart_of_the_daemon(daemon: OwnDaemon) -> None:
    sandbox = sandbox_on(daemon)
    await sandbox.start()
    session = sandbox.session(LIMITS)
    try:
        assert (await run(session, "x = 1")).status == "ok"
        await session.invoke(SLEEP)
        flush = asyncio.create_task(session.flush())
        await asyncio.sleep(0.5)
        daemon.kill()
        failed = await flush
        assert (failed.status, failed.stdout) == ("sandbox_error", "")
        assert failed.stderr
        assert not await sandbox.ready()
        with pytest.raises(SandboxError, match=r"no worker could be started|did not answer|Docker at"):
            await session.invoke("x = 2")
        daemon.script("ensure-docker", "--own")
        again = await until_ok(session, "print(globals().get('x'))")
        assert again.stdout == "None\n"  # neither the committed value nor that of the running flush
        assert await sandbox.ready()
    finally:
        await session.close()
        await sandbox.stop()
    # The containers of the killed daemon are removed as well.
    await until(lambda: daemon.containers() == 0)


async def test_recovers_after_the_daemons_disk_was_full(daemon: OwnDaemon) -> None:
    sandbox = sandbox_on(daemon)
    await sandbox.start()
    running, filler = sandbox.session(LIMITS), daemon.disk / "filler"
    try:
        assert (await run(running, "x = 1")).status == "ok"
        spare = sandbox.session(LIMITS)  # leases the container that started before the disk was full
        assert (await run(spare, "y = 1")).status == "ok"
        await until(lambda: not sandbox.stats().starting)
        fill(filler)
        # A running container writes nothing to the daemon's disk.
        assert (await run(running, "open('f', 'w').write('x' * 10**6)\nprint(x)")).stdout == "1\n"
        taken = [sandbox.session(LIMITS) for _ in range(sandbox.stats().idle + 2)]
        with pytest.raises(SandboxError, match="no space left on device"):
            await asyncio.gather(*(session.invoke("z = 1") for session in taken))
        assert (await run(running, "print(x)")).stdout == "1\n"
        filler.unlink()
        for session in (spare, *taken):
            await session.close()
        late = sandbox.session(LIMITS)
        assert (await until_ok(late, "print('again')")).stdout == "again\n"
        await late.close()
    finally:
        filler.unlink(missing_ok=True)
        await running.close()
        await sandbox.stop()
    await until(lambda: daemon.containers() == 0)


async def test_restores_files_in_a_container_with_a_full_disk(
    docker_sandbox_settings: DockerSandboxSettings,
) -> None:
    sandbox = DockerSandbox(docker_sandbox_settings)
    await sandbox.start()
    session = sandbox.session(LIMITS)
    fill_all = (
        "written = 0\n"
        "try:\n"
        "    for n in range(9):\n"
        "        with open(f'/tmp/{n}', 'wb') as f:\n"
        "            while True: written += f.write(bytes([n]) * 2**16)\n"
        "except OSError as error: print(error.errno)"
    )
    try:
        assert (await run(session, fill_all)).stdout in ("27\n", "28\n")
        lost = (
            "import os\nfor n in os.listdir('/tmp'): os.unlink(f'/tmp/{n}')\n"
            "open('/tmp/new', 'w').write('x')\n1 / 0"
        )
        assert (await run(session, lost)).status == "error"
        # All files are restored, although they fill the disk completely.
        look = (
            "import os\n"
            "print(sum(os.path.getsize(f'/tmp/{n}') for n in os.listdir('/tmp')) >= written > 2**25)"
        )
        back = await run(
            session, look + "\nprint(os.path.exists('/tmp/new'), set(open('/tmp/0', 'rb').read()))"
        )
        assert (back.status, back.stdout) == ("ok", "True\nFalse {0}\n"), back
    finally:
        await session.close()
        await sandbox.stop()


def fill(file: Path) -> None:
    """Fill the disk completely."""
    with file.open("wb") as out, contextlib.suppress(OSError):
        for size in (1 << 28, 1 << 24, 1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    end = out.seek(0, os.SEEK_END)
                    os.posix_fallocate(out.fileno(), end, size)


async def until_ok(session: Session, code: str) -> ExecutionResult:
    """Retry until a sandbox runs ``code``. Each attempt before must report that none is available."""
    for _ in range(60):
        try:
            result = await run(session, code)
        except SandboxError:
            await asyncio.sleep(1)
            continue
        if result.status != "sandbox_error":
            return result
    raise AssertionError("no sandbox came back")
