"""Differential tests: eager execution returns exactly what running the joined blocks at the flush returns."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
import traceback
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from service.sandbox.base import ExecutionResult, Session, SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.worker_protocol import MAX_CODE_BYTES
from tests.support.eager_programs import FORGET, Program, programs, reference

EXAMPLES = int(os.environ.get("IHGRPO_DIFFERENTIAL_EXAMPLES", "60"))
IS_FUZZ = EXAMPLES > 60
BATCH = min(EXAMPLES, 100)
"""Random programs of one test. `make fuzz` runs several tests concurrently, because programs mostly wait."""
DIFFERENCES = Path("build/eager_differences.txt")
"""File to which `make fuzz` writes the programs that fail."""
pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1500 + 30 * BATCH),
    pytest.mark.asyncio(loop_scope="module"),
]


@dataclass
class Runs:
    """An eager session, one that runs all blocks at the flush, and one for the reference."""

    eager: Session
    plain: Session
    fresh: Session
    flushes: int = 0
    """Flushes of the first two so far: a traceback holds the number."""

    async def compare(
        self, program: Sequence[Sequence[str]], pause_s: float, *, with_reference: bool
    ) -> list[str | None]:
        """Run a program in all sessions and compare what a model would see.

        Returns:
            Of each flush, the reason why its blocks did not run eagerly.
        """
        committed: list[tuple[str, str]] = []
        reasons: list[str | None] = []
        for flush in program:
            self.flushes += 1
            ahead = await flushed(self.eager, flush, pause_s)
            whole = await flushed(self.plain, flush)
            assert seen(ahead) == seen(whole), (flush, ahead, whole)
            assert ahead.status != "sandbox_error", ahead
            assert whole.eager_fallback is None
            reasons.append(ahead.eager_fallback)
            script = (f"<call {self.flushes}>", "\n".join(flush))
            again = reference([*committed, script])
            # The reference's own output is JSON, with up to six characters for one.
            fits = len(again) <= MAX_CODE_BYTES and len(whole.stdout + whole.stderr) <= 5_000
            if with_reference and fits:
                result = await flushed(self.fresh, [again])
                assert result.status == "ok", result
                exit_code, stdout, stderr = json.loads(result.stdout)
                expected = (stdout, stderr, exit_code) if exit_code >= 0 else (stdout, stderr, None)
                assert (whole.stdout, whole.stderr, whole.exit_code) == expected, (flush, committed, whole)
                assert whole.signal == (-exit_code if exit_code < 0 else None)
            if whole.status == "ok":
                committed.append(script)
        return reasons


def two_ways(sandbox: DockerSandbox) -> tuple[Session, Session]:
    """Return an eager session, and one that runs all blocks at the flush."""
    return (
        sandbox.session(SessionLimits(run_limit_s=30, eager=True)),
        sandbox.session(SessionLimits(run_limit_s=30, eager=False)),
    )


@pytest_asyncio.fixture(loop_scope="module")
async def runs(docker_sandbox: DockerSandbox) -> AsyncGenerator[Runs]:
    """New sessions: a container ends after an hour, and after a failure the sessions are at different
    flushes."""
    sessions = Runs(
        *two_ways(docker_sandbox), docker_sandbox.session(SessionLimits(run_limit_s=30, eager=False))
    )
    yield sessions
    for session in (sessions.eager, sessions.plain, sessions.fresh):
        await session.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(docker_sandbox: DockerSandbox) -> AsyncGenerator[tuple[Session, Session]]:
    eager, plain = two_ways(docker_sandbox)
    yield eager, plain
    await eager.close()
    await plain.close()


def record(error: Exception) -> None:
    DIFFERENCES.parent.mkdir(exist_ok=True)
    with DIFFERENCES.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(traceback.format_exception_only(error)) + "\n")


async def flushed(session: Session, flush: Sequence[str], pause_s: float = 0.0) -> ExecutionResult:
    for block in flush:
        await session.invoke(block)
        await asyncio.sleep(pause_s)
    return await session.flush()


def seen(result: ExecutionResult) -> tuple[object, ...]:
    """The parts of a result that a model sees, and how the script ended."""
    return result.stdout, result.stderr, result.status, result.exit_code, result.signal


@pytest.mark.parametrize("batch", range(math.ceil(EXAMPLES / BATCH)))
@given(program=programs(), pause_s=st.sampled_from([0.0, 0.02, 0.1]))
@settings(
    max_examples=BATCH,
    deadline=None,
    derandomize=not IS_FUZZ,  # longer runs draw new programs each time
    # A difference that depends on timing can't be shrunk. The next run starts with the program that failed.
    phases=(Phase.explicit, Phase.reuse, Phase.generate) if IS_FUZZ else tuple(Phase),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_eager_execution_equals_running_all_blocks_at_the_flush(
    runs: Runs, batch: int, program: Program, pause_s: float
) -> None:
    try:
        await runs.compare(program.flushes, pause_s, with_reference=program.can_replay)
        await runs.compare([[FORGET]], 0.0, with_reference=False)
    except Exception as error:
        error.add_note(f"{program!r}, pauses of {pause_s} s")
        if IS_FUZZ:
            record(error)  # now, and not only after hours
        raise


SEED = "import random\nrandom.seed(42)"
TWICE = "x = f.readline()", "y = []", "print(repr(x), y)"
FORKS = (
    "import os, time\nfor _ in range(80):\n    try:\n        if not os.fork(): time.sleep(0.3); os._exit(0)\n"
    "    except OSError: pass"
)
HOLD = (
    "import threading\ngo = threading.Event()\ntry:\n    while True:\n"
    "        threading.Thread(target=go.wait, daemon=True).start()\nexcept RuntimeError: print('limit')"
)


@pytest.mark.parametrize(
    ("program", "reasons"),
    [
        pytest.param([["a = 3", "a +", "print(a)"], ["a"]], ["not_separable", None], id="syntax error"),
        pytest.param([["1 / 0", "a +"]], ["not_separable"], id="syntax error after the end"),
        pytest.param([["1 / 0", "print(2)"]], [None], id="nothing wrong after the end"),
        pytest.param([["raise SystemExit", "1 +"], ["raise SystemExit", "print('never')"]], None, id="exit"),
        pytest.param([['"""doc"""', "print(__doc__)"]], ["not_separable"], id="docstring"),
        pytest.param(
            [["c = 1000.5\nd = 1000.5", "e = 1000.5\nprint(e is d)"]], ["not_separable"], id="identity"
        ),
        pytest.param([["print(globals().keys())", "x: int = 1"]], ["not_separable"], id="annotations"),
        pytest.param([["print(dir())\n1 / 0", "x: int = 1"]], [None], id="annotations after the end"),
        pytest.param(
            [["x: int = 1", "del __annotations__", "y: int = 2"], ["del __annotations__"], ["dir()\nz: int"]],
            ["not_separable", None, None],
            id="deleted annotations",
        ),
        pytest.param(
            [["import os\nif not os.fork(): os.getpid()\nelse: os.wait()", "print('both')", "a = 1"]],
            ["forked"],
            id="fork",
        ),
        pytest.param(
            [["class D:\n  def __del__(self): print('gone')\n  def __repr__(self): return 'D'\nD()", "# c"]],
            [None],
            id="deleted value",
        ),
        pytest.param(
            [["", "import traceback\ntry: f()\nexcept NameError: traceback.print_exc()"]], [None], id="lines"
        ),
        pytest.param(
            [["import signal\nsignal.alarm(1)", "import time\nprint('x')"]], ["background_work"], id="timer"
        ),
        pytest.param([[SEED], ["1 / 0"], ["print(random.random())"]], [None, None, None], id="random"),
        pytest.param(
            [
                [
                    SEED,
                    "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
                ],
                ["print(random.random())", "print(random.random())"],
            ],
            ["background_work", None],
            id="random beside a thread",
        ),
        pytest.param(
            [
                ["import numpy as np\nnp.random.seed(1)"],
                ["np.random.rand()\n1 / 0"],
                ["print(np.random.rand())"],
            ],
            [None, None, None],
            id="numpy's random",
        ),
        pytest.param(
            [
                ["open('d', 'w').write('one\\ntwo\\nthree\\n')\nf = open('d')"],
                [*TWICE, "id(x)\nNone"],
                [*TWICE, "1 / 0"],
                [*TWICE],
            ],
            [None, "not_separable", None, None],
            id="offset",
        ),
        pytest.param(
            [
                ["import os\nf = open('d', 'w+')\nf.write('abc')\nf.flush()"],
                ["os.unlink('d')\nf.write('x')\nf.flush()\n1 / 0"],
                ["f.write('d')\nf.flush()\nprint(open('d').read())"],
            ],
            [None, None, None],
            id="unlinked",
        ),
        pytest.param(
            [["import os\nr, w = os.pipe()"], ["os.write(w, b'x')", "print(os.read(r, 9))"]],
            [None, "shared_state"],
            id="pipe",
        ),
        pytest.param(
            [
                ["import multiprocessing\nv = multiprocessing.Value('i', 0)"],
                ["v.value += 1", "print(v.value)"],
            ],
            [None, "shared_state"],
            id="shared memory",
        ),
        pytest.param(
            [[HOLD, "print('next')"], ["print('after')"]], ["background_work", None], id="thread limit"
        ),
        pytest.param([[f"a{n} = {n}" for n in range(100)] + ["print(a99)"]], [None], id="many blocks"),
        pytest.param(
            [["x = [" + "1," * 140_000 + "]"] * 3, ["print(len(x))"]], [None, None], id="large literals"
        ),
        pytest.param([[FORKS], ["print('after')"], ["print('again')"]], [None, None, None], id="zombies"),
        pytest.param([["import os\nprint('a', end='')", "os.system('echo b')"]], [None], id="partial line"),
        pytest.param([["print('a')", "1 / 0", "print('b')"]], [None], id="carets"),
        pytest.param(
            [
                [
                    "import os\nfor fd in range(3, 300):\n    try: os.write(fd, b'x' * 9)\n"
                    "    except OSError: pass",
                    "print('x')",
                ]
            ],
            [None],
            id="every descriptor",
        ),
        pytest.param(
            [["import os\nos.closerange(3, 1000)", "print('x')", "5"], ["print('new')"]],
            ["channel_closed", None],
            id="closed channel",
        ),
        pytest.param(
            [["import sys\nsys.settrace(lambda *a: print(a[1]))", "a = 1"]], ["not_separable"], id="tracing"
        ),
        pytest.param([["from linecache import cache\ncache.clear()"], ["1 / 0"]], None, id="source lines"),
        pytest.param(
            [["import resource\nresource.setrlimit(7, (99, 99))"], ["print('ok')"]], [None, None], id="limits"
        ),
    ],
)
async def test_programs_that_eager_execution_could_change(
    docker_sandbox: DockerSandbox, program: list[list[str]], reasons: list[str | None] | None
) -> None:
    eager, plain = two_ways(docker_sandbox)
    try:
        seen_reasons = await Runs(eager, plain, plain).compare(program, 0.3, with_reference=False)
    finally:
        await eager.close()
        await plain.close()
    # On a busy machine a process that has just ended may still count as background work.
    wanted = seen_reasons if reasons is None else reasons
    assert all(seen in (reason, "background_work") for seen, reason in zip(seen_reasons, wanted, strict=True))


async def test_a_block_runs_before_the_flush(pair: tuple[Session, Session]) -> None:
    eager, _ = pair
    await eager.invoke("import time\ntime.sleep(0.5)\nprint('slept')")
    await asyncio.sleep(3)
    result = await eager.flush()
    assert (result.status, result.stdout) == ("ok", "slept\n")
    assert result.wall_seconds > 0.4
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


@pytest.mark.parametrize("failure", [None, "1 / 0"])
async def test_an_executor_works_in_later_flushes(pair: tuple[Session, Session], failure: str | None) -> None:
    for session in pair:
        pool = "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)"
        assert (await flushed(session, [pool, "list(pool.map(abs, [-1, -2]))"])).stdout == "[1, 2]\n"
        if failure is not None:
            assert (await flushed(session, [failure])).status == "error"
        result = await flushed(session, ["pool.submit(sum, [1, 2]).result(9)"])
        assert result.stdout == "3\n", result
        result = await flushed(session, ["pool.shutdown(wait=True)", "print('closed')"])
        assert result.stdout == "closed\n", result


async def test_the_run_limit_counts_only_running_time(docker_sandbox: DockerSandbox) -> None:
    session = docker_sandbox.session(SessionLimits(run_limit_s=4))
    try:
        await session.invoke("a = 1")
        await asyncio.sleep(5)
        assert (await flushed(session, ["a + 1"])).stdout == "2\n"
        late = await flushed(session, ["import time\ntime.sleep(2.5)", "time.sleep(2.5)"])
        assert late.status == "timeout"
    finally:
        await session.close()


async def test_a_block_that_ends_before_its_check_is_not_rerun(pair: tuple[Session, Session]) -> None:
    """The check whether blocks can run one by one takes longer than running them here."""
    eager, _ = pair
    long = "\n".join(f"name_{number} = {number}" for number in range(3000))
    result = await flushed(eager, ["first = 1", long, "print(first, name_2999)"], 1.0)
    assert (result.status, result.stdout) == ("ok", "1 2999\n")
    assert len(result.runs) == 3  # not one run of the whole
