from __future__ import annotations

import json
import shutil

import pytest

from service.sandbox.base import SandboxError, SessionLimits
from service.sandbox.bubblewrap.sandbox import ProcessSandbox, ProcessSandboxSettings, command
from service.sandbox.worker_program import compile_profile, image_folder

SETTINGS = ProcessSandboxSettings(
    pool_size=1, max_containers=2, start_timeout_s=300, grace_s=20, python="/usr/bin/python3"
)


def test_as_root_only_the_supervisor_has_capabilities() -> None:
    line = command(SETTINGS, seccomp=9, uid=200_000)
    assert [line[i + 1] for i, word in enumerate(line) if word == "--cap-add"] == [
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_KILL",
    ]
    assert "--unshare-net" in line
    assert "--unshare-user" not in line
    assert json.loads(line[-1])["processes"] == 64


def test_without_root_there_is_one_uid_and_no_capability() -> None:
    line = command(SETTINGS, seccomp=9, uid=0)
    assert "--cap-add" not in line
    assert "--unshare-user" in line
    assert json.loads(line[-1])["uid"] == 0


def test_mounts_no_writable_folder_of_the_host() -> None:
    line = command(SETTINGS, seccomp=9, uid=0)
    assert not {"--bind", "--bind-try", "--dev-bind", "--dev-bind-try", "--share-net"} & set(line)


async def test_names_a_missing_program() -> None:
    sandbox = ProcessSandbox(SETTINGS.model_copy(update={"bubblewrap": "no-such-bwrap"}))
    with pytest.raises(SandboxError, match="no-such-bwrap is not installed"):
        await sandbox.start()
    assert not await sandbox.ready()


def test_compiles_the_seccomp_profile() -> None:
    import os

    program = compile_profile(image_folder() / "seccomp.json")
    assert os.fstat(program).st_size > 0
    assert os.fstat(program).st_size % 8 == 0  # struct sock_filter
    os.close(program)


FORTY_THREADS = """
import threading, time
for _ in range(40): threading.Thread(target=time.sleep, args=(0.5,)).start()
print('started')
"""


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
async def test_a_session_keeps_its_namespace_and_undoes_failed_blocks() -> None:
    sandbox = ProcessSandbox(SETTINGS)
    await sandbox.start()
    session = sandbox.session(SessionLimits(run_limit_s=20))
    try:
        assert await sandbox.ready()
        programs = {"x = 1": "", "x = 2\n1 / 0": "", "print(x)": "1\n", FORTY_THREADS: "started\n"}
        for code, expected in programs.items():
            await session.invoke(code)
            assert (await session.flush()).stdout == expected
    finally:
        await session.close()
        await sandbox.stop()
    assert sandbox.stats().idle == 0
