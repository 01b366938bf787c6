"""Differential tests: eager execution returns exactly what running the joined blocks at the flush returns."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.sandbox.base import ExecutionResult, Session, SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings

EXAMPLES = int(os.environ.get("IHGRPO_DIFFERENTIAL_EXAMPLES", "60"))
pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1500 + 3 * EXAMPLES),
    pytest.mark.asyncio(loop_scope="session"),
]

STATEMENTS = [
    "a = 3",
    "a = a + 1",
    "b = [a]",
    "b.append(a)\nprint(b)",
    "print(a, end='')",
    "a",
    "b",
    "None",
    "'text'",
    '"""several\nlines"""',
    "print(__doc__)",
    "1 / 0",
    "raise ValueError('mine')",
    "raise SystemExit",
    "raise SystemExit(2)",
    "raise SystemExit('bye')",
    "def f(n):\n    return n * a",
    "print(f(2))",
    "f(3)",
    "if a == 3:\n    print('three')",
    "else:\n    print('other')",
    "for i in range(2):",
    "    print('indented')",
    "x = (1,",
    "2)",
    "x = 1 + \\",
    "y = '''open",
    "return 5",
    "from __future__ import annotations",
    "def g(q: undefined): pass",
    "global a",
    "c = 1000.5\nd = 1000.5",
    "e = 1000.5\nprint(e is d)",
    "import sys\nsys.stderr.write('warned\\n')",
    "import sys\nprint('line', sys._getframe().f_lineno)",
    "import sys, traceback\ntry: f(None, 1)\nexcept Exception: traceback.print_exc(file=sys.stdout)",
    "print('ü\\0\\ud800')",
    "open('file', 'a').write('z')",
    "print(open('file').read())",
    "import os\nprint(sorted(os.listdir('.')), os.path.exists('/tmp/deep'))",
    "import os\nos.makedirs('/tmp/deep/er', exist_ok=True)",
    "import os\nos.unlink('file')",
    "import threading\nt = threading.Thread(target=print, args=('thread',))\nt.start()\nt.join()",
    "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.5), print('late'))).start()",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "import subprocess\nprint(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout)",
    "import subprocess\nsubprocess.Popen(['sleep', '60'])\nprint('left one behind')",
    # Not os.wait(), which may reap a killed child of an earlier block.
    "import os\nif child := os.fork(): os.waitpid(child, 0)\nelse: print('in the fork', flush=True)",
    "import random\nrandom.seed(1)",
    "print(random.random())",
    "import os\nos.environ['MINE'] = 'set'\nprint(os.environ.get('MINE'))",
    "import sys, io\nsys.stdout = io.StringIO()",
    "class D:\n    def __del__(self): print('gone')\n    def __repr__(self): return 'D'\nD()",
    "# only a comment",
    "",
]
FORGET = (
    "import os, shutil\n"
    "for _p in ('.', '/tmp'):\n"
    "    for _n in os.listdir(_p):\n"
    "        _q = os.path.join(_p, _n)\n"
    "        shutil.rmtree(_q) if os.path.isdir(_q) else os.unlink(_q)\n"
    "for _n in [n for n in globals() if not n.startswith('__')]: del globals()[_n]\n"
    "__doc__ = None"
)

blocks = st.lists(st.sampled_from(STATEMENTS), min_size=0, max_size=3).map("\n".join)
programs = st.lists(st.lists(blocks, min_size=1, max_size=4), min_size=1, max_size=3)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(docker_sandbox_settings: DockerSandboxSettings) -> AsyncGenerator[tuple[Session, Session]]:
    """An eager session, and one that runs all blocks at the flush."""
    sandbox = DockerSandbox(docker_sandbox_settings)
    await sandbox.start()
    eager = sandbox.session(SessionLimits(run_limit_s=30, eager=True))
    plain = sandbox.session(SessionLimits(run_limit_s=30, eager=False))
    yield eager, plain
    await eager.close()
    await plain.close()
    await sandbox.stop()


async def flushed(session: Session, flush: list[str], pause_s: float = 0.0) -> ExecutionResult:
    for block in flush:
        await session.invoke(block)
        await asyncio.sleep(pause_s)
    return await session.flush()


def seen(result: ExecutionResult) -> tuple[object, ...]:
    """The parts of a result that a model sees, and how the script ended."""
    lines = result.stderr.strip().splitlines()
    return result.stdout, lines[-1] if lines else "", result.status, result.exit_code, result.signal


@given(programs, st.sampled_from([0.0, 0.02, 0.1]))
@example([["a = 3", "a +", "print(a)"], ["a"]], 0.1)
@example([["open('file', 'w').write('x')", "1 / 0"], ["import os\nos.listdir('.')"]], 0.1)
@example([['"""doc"""', "print(__doc__)"]], 0.1)
@example([["c = 1000.5\nd = 1000.5", "e = 1000.5\nprint(e is d)"]], 0.1)
@example([["raise SystemExit", "1 +"], ["raise SystemExit", "print('never')"]], 0.1)
@example([["import os\nif not os.fork(): os.getpid()\nelse: os.wait()", "print('both')", "a = 1"]], 0.1)
@example(
    [["class D:\n  def __del__(self): print('gone')\n  def __repr__(self): return 'D'\nD()", "# c"]], 0.0
)
@example([["", "import traceback\ntry: f()\nexcept NameError: traceback.print_exc()"]], 0.0)
@example([["import signal\nsignal.alarm(1)", "import time\nprint('before the alarm')"]], 1.2)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 60,  # longer runs draw new programs each time
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_eager_execution_equals_running_all_blocks_at_the_flush(
    pair: tuple[Session, Session], program: list[list[str]], pause_s: float
) -> None:
    eager, plain = pair
    for flush in [*program, [FORGET]]:
        ahead = await flushed(eager, flush, pause_s)
        whole = await flushed(plain, flush)
        assert seen(ahead) == seen(whole), (flush, ahead, whole)
        assert ahead.status != "sandbox_error"


async def test_a_block_runs_before_the_flush(pair: tuple[Session, Session]) -> None:
    eager, _ = pair
    await eager.invoke("import time\ntime.sleep(0.5)\nprint('slept')")
    await asyncio.sleep(3)
    result = await eager.flush()
    assert (result.status, result.stdout) == ("ok", "slept\n")
    assert result.wall_seconds >= 0.5
    assert result.started_at is not None
    # It started when it was invoked, not at the flush.
    assert result.started_at < time.time() - result.waited_seconds - 1


async def test_results_hold_the_times_of_each_block(pair: tuple[Session, Session]) -> None:
    eager, plain = pair
    blocks = ["import time\ntime.sleep(0.2)", "time.sleep(0.3)", "undefined", "print('never')"]
    ahead, whole = await flushed(eager, blocks), await flushed(plain, blocks)
    assert len(ahead.runs) == 3  # the last one never ran
    slept = [end - start for start, end in ahead.runs]
    assert slept[0] >= 0.2
    assert slept[1] >= 0.3
    times = [time for run in ahead.runs for time in run]
    assert times == sorted(times)
    [(start, end)] = whole.runs
    assert end - start >= 0.5


async def test_a_failed_flush_undoes_blocks_that_ran_before_it(pair: tuple[Session, Session]) -> None:
    eager, _ = pair
    await flushed(eager, ["kept = 1"])
    failed = await flushed(eager, ["kept = 2\nopen('trace', 'w').write('x')", "undefined"], 0.2)
    assert failed.status == "error"
    assert failed.stderr.strip().endswith("NameError: name 'undefined' is not defined")
    after = await flushed(eager, ["import os\nprint(kept, os.listdir('.'))"])
    assert after.stdout == "1 []\n"


async def test_the_run_limit_counts_only_running_time(docker_sandbox_settings: DockerSandboxSettings) -> None:
    sandbox = DockerSandbox(docker_sandbox_settings)
    await sandbox.start()
    session = sandbox.session(SessionLimits(run_limit_s=4))
    try:
        await session.invoke("a = 1")
        await asyncio.sleep(5)
        assert (await flushed(session, ["a + 1"])).stdout == "2\n"
        late = await flushed(session, ["import time\ntime.sleep(2.5)", "time.sleep(2.5)"])
        assert late.status == "timeout"
    finally:
        await session.close()
        await sandbox.stop()


async def test_a_block_that_ends_before_its_check_is_not_rerun(pair: tuple[Session, Session]) -> None:
    """The check whether blocks can run one by one takes longer than running them here."""
    eager, _ = pair
    long = "\n".join(f"name_{number} = {number}" for number in range(3000))
    result = await flushed(eager, ["first = 1", long, "print(first, name_2999)"], 1.0)
    assert (result.status, result.stdout) == ("ok", "1 2999\n")
    assert len(result.runs) == 3  # not one run of the whole
