from __future__ import annotations

import subprocess
import sys

import pytest

SUPERVISOR = """
import os, sys, threading
from sandbox_image.worker import namespace
{setup}
if os.fork() == 0:  # the namespace
    read, write = os.pipe()
    wait, go = os.pipe()
    if namespace.fork_sibling():
        os.read(wait, 1)  # by then a middle process has ended
        os.write(write, b"%d %d" % (threading.get_native_id(), os.getppid()))
        os._exit(7)
    os.close(write)
    os.write(go, b"!")
    sibling, parent = map(int, os.read(read, 100).split())
    assert parent == os.getppid(), "the sibling is not our parent's child"
    try:
        os.waitpid(-1, 0)
        os._exit(1)  # not a child of this process
    except ChildProcessError:
        os._exit(0)
print(sorted(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) for _ in range(2)))
"""


@pytest.mark.parametrize(
    "setup",
    [
        "",
        "namespace._SYS_CLONE = None",
        "namespace._tid_address = None",
    ],
    ids=["clone", "no such call", "no thread id"],
)
def test_the_new_process_is_a_child_of_the_parent(setup: str) -> None:
    code = SUPERVISOR.replace("{setup}", setup)
    if setup:  # two forks: the orphan is adopted by the subreaper, see prctl(2)
        code = "import ctypes; ctypes.CDLL(None).prctl(36, 1)\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[0, 7]\n", done.stderr


def test_a_process_with_threads_can_fork() -> None:
    code = "import ctypes; ctypes.CDLL(None).prctl(36, 1)\n" + SUPERVISOR.replace("{setup}", "").replace(
        "    read, write",
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()\n    read, write",
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[0, 7]\n", done.stderr
