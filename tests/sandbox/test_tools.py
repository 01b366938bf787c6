"""Tools in real containers: calls from code, their limits, and eager execution."""
# ruff: noqa: E501  code in strings

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.sandbox.base import ExecutionResult, Sandbox, Session, SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.files import FileSandbox
from tests.support.tool_host import RecordingHost
from tests.support.until import until

EXAMPLES = int(os.environ.get("IHGRPO_DIFFERENTIAL_EXAMPLES", "25"))
pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1500 + 30 * EXAMPLES),
    pytest.mark.asyncio(loop_scope="module"),
]
LIMITS = SessionLimits(run_limit_s=30, tool_wait_s=30)


@pytest.fixture(params=["docker_sandbox", "runner_client", "bubblewrap_sandbox"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    found: Sandbox = request.getfixturevalue(request.param)
    return found


class Tools:
    """A session and the host of its tools."""

    def __init__(self, sandbox: Sandbox, limits: SessionLimits = LIMITS) -> None:
        self.host = RecordingHost()
        self.session: Session = sandbox.session(limits, self.host)

    async def flush(self, *blocks: str, pause_s: float = 0.0) -> ExecutionResult:
        for block in blocks:
            await self.session.invoke(block)
            await asyncio.sleep(pause_s)
        return await self.session.flush()

    async def __aenter__(self) -> Tools:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()


def seen(result: ExecutionResult) -> tuple[object, ...]:
    return result.stdout, result.stderr, result.status, result.exit_code, result.signal


async def test_code_calls_tools(sandbox: Sandbox) -> None:
    async with Tools(sandbox) as tools:
        result = await tools.flush(
            "from tools import add, notes, note", "print(add(1), add(2, b=3), notes())"
        )
        assert seen(result) == ("2 5 []\n", "", "ok", 0, None)
        result = await tools.flush("print(note('hi'), notes())")
        assert result.stdout == "1 ['hi']\n"
        assert tools.host.calls == [
            ("add", {"a": 1}),
            ("add", {"a": 2, "b": 3}),
            ("notes", {}),
            ("note", {"text": "hi"}),
            ("notes", {}),
        ]
        assert len(set(tools.host.ids)) == 5


async def test_an_error_is_an_exception_with_the_tools_message(sandbox: Sandbox) -> None:
    async with Tools(sandbox) as tools:
        result = await tools.flush(
            "from tools import *\ntry: fail('out of order')\nexcept ToolError as e: print(e)", "fail('again')"
        )
        assert result.stdout == "out of order\n"
        assert result.stderr.splitlines() == [
            "Traceback (most recent call last):",
            '  File "<call 1>", line 4, in <module>',
            "    fail('again')",
            "tools.ToolError: again",
        ]


async def test_gather_calls_at_once(sandbox: Sandbox) -> None:
    async with Tools(sandbox) as tools:
        result = await tools.flush(
            "from tools import gather, slow, add, fail\nfrom functools import partial\n"
            "print(len(gather(slow.bind(1.0) for _ in range(16))))",
            "print(gather(add.bind(1), partial(add, 2)), gather(fail.bind('x'), return_exceptions=True))",
        )
        assert result.stdout == "16\n[2, 3] [ToolError('x')]\n"
        assert result.wall_seconds < 12  # one after another they take 16


async def test_threads_and_forks_can_call(sandbox: Sandbox) -> None:
    async with Tools(sandbox) as tools:
        result = await tools.flush(
            "from tools import add\nfrom concurrent.futures import ThreadPoolExecutor\nimport os, sys\n"
            "with ThreadPoolExecutor(8) as pool: print(sum(pool.map(add, range(40))))\n"
            "if not os.fork():\n    print(add(5)); sys.stdout.flush(); os._exit(0)\n"
            "os.wait()\nprint(add(6))"
        )
        assert (result.stdout, result.status) == ("820\n6\n7\n", "ok")


async def test_the_functions_describe_themselves(sandbox: Sandbox) -> None:
    async with Tools(sandbox) as tools:
        result = await tools.flush(
            "import inspect, tools\nprint(inspect.signature(tools.add), tools.add.__doc__)\n"
            "try: tools.add()\nexcept TypeError as e: print(e)\nprint(tools.__all__)"
        )
        assert result.stdout.splitlines() == [
            "(a: int, b: int = 1) -> int Add two numbers.",
            "add() missing a required argument: 'a'",
            "['add', 'notes', 'note', 'slow', 'fail', 'echo', 'gather', 'ToolError', 'ToolDeniedError']",
        ]


async def test_sessions_with_files_have_other_tools_in_each_request(sandbox: Sandbox) -> None:
    async def content() -> AsyncGenerator[bytes]:
        for _ in range(8):
            yield b"x" * 250_000

    assert isinstance(sandbox, FileSandbox)
    limits, host = replace(LIMITS, figures="png"), RecordingHost()
    session = sandbox.file_session(limits)
    try:
        await session.lease()
        await session.configure(limits, host)
        await session.invoke(
            "from tools import add, note, slow\nslow(0.3)\nopen('a', 'w').write(str(add(1)))"
        )
        await session.put("big", 2_000_000, content())
        await session.invoke("print(note('x'), len(open('/inputs/big').read()))")
        result = await session.flush()
        assert seen(result) == ("1 2000000\n", "", "ok", 0, None)
        assert result.eager_fallback is None
        [file] = (await session.changes()).files
        assert b"".join([chunk async for chunk in session.read(file)]) == b"2"

        await session.invoke("y = add(5)\nnote('never')")  # waits for the flush, which never comes
        await until(lambda: ("add", {"a": 5}) in host.calls)
        await session.park()
        await session.freeze()
        other = RecordingHost()
        await session.configure(limits, other)
        await session.invoke("print(note('z'), 'y' in globals())")
        assert (await session.flush()).stdout == "1 False\n"
        assert (host.notes, other.notes) == (["x"], ["z"])

        await session.park()
        await session.configure(limits)
        await session.invoke("print(open('a').read())\nimport tools")
        result = await session.flush()
        assert result.stdout == "2\n"
        assert result.stderr.endswith("No module named 'tools'\n")
    finally:
        await session.close()


async def test_without_tools_there_is_no_module(sandbox: Sandbox) -> None:
    session = sandbox.session(LIMITS)
    try:
        await session.invoke("import tools")
        assert (await session.flush()).stderr.endswith("No module named 'tools'\n")
    finally:
        await session.close()


async def test_read_only_tools_run_ahead_and_others_wait_for_the_flush(sandbox: Sandbox) -> None:
    async with Tools(sandbox) as tools:
        await tools.session.invoke("from tools import add, note\nx = add(1)")
        await until(lambda: len(tools.host.calls) == 1)
        await tools.session.invoke("y = note(str(x))\nz = add(y)")
        await asyncio.sleep(1)
        assert tools.host.notes == []
        result = await tools.flush("print(x, y, z)")
        assert (result.stdout, result.eager_fallback) == ("2 1 2\n", None)
        assert tools.host.notes == ["2"]


async def test_a_block_that_is_never_flushed_leaves_no_trace(sandbox: Sandbox) -> None:
    async with Tools(sandbox) as tools:
        await tools.session.invoke("from tools import note\nnote('never')")
        await asyncio.sleep(1)
    assert tools.host.calls == []


async def test_the_wait_for_the_flush_counts_as_no_time(sandbox: Sandbox) -> None:
    async with Tools(sandbox, replace(LIMITS, run_limit_s=4)) as tools:
        await tools.session.invoke("from tools import note\nprint(note('a'))")
        await asyncio.sleep(6)
        result = await tools.session.flush()
        assert (result.stdout, result.status) == ("1\n", "ok")
        assert result.wall_seconds < 4
        [run] = result.runs
        [(stopped, released)] = result.pauses
        assert run[0] < stopped < released < run[1]
        assert released - stopped > 1


async def test_waiting_for_tools_has_its_own_limit(sandbox: Sandbox) -> None:
    async with Tools(sandbox, replace(LIMITS, run_limit_s=2, tool_wait_s=5)) as tools:
        result = await tools.flush("from tools import slow\nslow(3)\nprint('ok')")
        assert (result.stdout, result.status) == ("ok\n", "ok")
        result = await tools.flush("slow(60)")
        assert result.status == "timeout"
        await until(lambda: tools.host.cancelled == 1)
        result = await tools.flush("import time\nslow(0)\nwhile True: pass")
        assert result.status == "timeout"
        assert (await tools.flush("print(slow(0))")).stdout == "done\n"


async def test_calls_are_limited_in_number_and_size(sandbox: Sandbox) -> None:
    async with Tools(sandbox, replace(LIMITS, tool_calls=5)) as tools:
        result = await tools.flush(
            "from tools import add, echo, ToolError\nfor n in range(7):\n"
            "    try: print(add(n))\n    except ToolError as e: print(e)"
        )
        assert result.stdout.splitlines() == [
            "1",
            "2",
            "3",
            "4",
            "5",
            *2 * ["more than 5 calls of tools in one run"],
        ]
        result = await tools.flush("try: echo('x' * 70_000)\nexcept ToolError as e: print(e)")
        assert result.stdout == "echo(): the arguments are larger than 65536 bytes\n"


async def test_values_of_all_kinds_return(sandbox: Sandbox) -> None:
    async with Tools(sandbox) as tools:
        values = [None, True, 1.5, 10**30, 'ä\U0001f600\x00\n"', [], {"a": [{"b": None}]}, "x" * 60_000]
        result = await tools.flush(
            f"import tools\nfrom tools import echo\nprint([echo(v) == v for v in {values!r}])",
            "try: echo('\\ud800')\nexcept tools.ToolError as e: print(e)",
        )
        rejected = "the arguments have a lone surrogate, which is not valid Unicode"
        assert result.stdout.splitlines() == [str([True] * len(values)), rejected]


HOSTILE = {
    "garbage on the control socket": (
        "import gc, socket\nfor s in [o for o in gc.get_objects() if isinstance(o, socket.socket)]:\n"
        "    for data in (b'T', b'x', b'T' * 60):\n        s.send(data)"
    ),
    "forged requests": (
        "import array, gc, os, socket, struct\n"
        "control = [o for o in gc.get_objects() if isinstance(o, socket.socket)][0]\n"
        "def call(data, fds=1, close=True):\n"
        "    a, b = socket.socketpair()\n"
        "    control.sendmsg([b'T'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [b.fileno()] * fds))])\n"
        "    b.close()\n    try: a.sendall(data)\n    except OSError: pass\n    kept.append(a)\n"
        "kept = []\n"
        "call(struct.pack('!III', 2**32 - 1, 2**32 - 1, 0))\ncall(struct.pack('!III', 3, 2, 0) + b'\\xff\\xff\\xff{}')\n"
        "call(struct.pack('!III', 3, 2, 0) + b'add{}more')\ncall(struct.pack('!III', 3, 4, 0) + b'add{NaN')\n"
        "call(struct.pack('!III', 3, 2, 0) + b'add[]')\ncall(struct.pack('!III', 5, 2, 0) + b'other{}')\ncall(b'', fds=9)\n"
        "call(struct.pack('!III', 3, 200000, 0) + b'add')\n"
        "for fd in (0, 1, 2, os.open('/dev/null', 0)):\n"
        "    control.sendmsg([b'T'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])\n"
        "for _ in range(100): call(b'')"
    ),
    "open calls": (
        "import array, gc, socket, struct\n"
        "control = [o for o in gc.get_objects() if isinstance(o, socket.socket)][0]\nkept = []\n"
        "for _ in range(60):\n"
        "    a, b = socket.socketpair()\n"
        "    control.sendmsg([b'T'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [b.fileno()]))])\n"
        "    b.setblocking(True)\n    a.send(struct.pack('!III', 4, 16, 0) + b'slow' + b'{\"seconds\": 0.1}')\n"
        "    kept += [a, b]"
    ),
    "closed descriptors": "import os\nos.closerange(3, 2000)\nfrom tools import add\ntry: add(1)\nexcept Exception as e: print(e)",
    "replaced functions": (
        "import json, socket, struct, array, tools\njson.loads = json.dumps = socket.socketpair = None\n"
        "print(tools.add(1))\ntools.add = None"
    ),
    "no reading": (
        "import array, gc, socket, struct, json\n"
        "control = [o for o in gc.get_objects() if isinstance(o, socket.socket)][0]\n"
        "arguments = json.dumps({'value': 'x' * 60000}).encode()\nkept = []\n"
        "for _ in range(8):\n    a, b = socket.socketpair()\n"
        "    control.sendmsg([b'T'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [b.fileno()]))])\n"
        "    b.close()\n    a.sendall(struct.pack('!III', 4, len(arguments), 0) + b'echo' + arguments)\n    kept.append(a)\n"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("eager", [True, False])
async def test_hostile_code_harms_only_itself(docker_sandbox: Sandbox, name: str, eager: bool) -> None:
    async with Tools(docker_sandbox, replace(LIMITS, eager=eager, tool_wait_s=4)) as tools:
        result = await tools.flush(HOSTILE[name], pause_s=0.5)
        assert result.status in ("ok", "error", "timeout"), result
        after = await tools.flush("import tools\nprint(tools.add(20, 22))")
        assert (after.stdout, after.status) == ("42\n", "ok"), (result, after)


async def test_calls_after_the_flush_are_not_made(sandbox: Sandbox) -> None:
    async with Tools(sandbox) as tools:
        result = await tools.flush(
            "import threading, time\nfrom tools import note\n"
            "def later():\n    time.sleep(1)\n    note('late')\n"
            "threading.Thread(target=later, daemon=True).start()"
        )
        assert result.status == "ok"
        await asyncio.sleep(2)
        assert tools.host.notes == []


FALLBACKS = {
    "syntax error": ["from tools import *\nx = add(1)\nn = note('a')", "y ="],
    "identity": ["from tools import *\nx = add(1)\nn = note('a')", "print(x, n, id)"],
    "docstring": ['"""doc"""', "from tools import *\nprint(add(1), note('a'), __doc__)"],
    "fork": [
        "from tools import *\nimport os\nx = add(1)\nif not os.fork(): os._exit(0)\nos.wait()\nnote('a')",
        "print(add(2))",
    ],
    "lost channel": [
        "from tools import *\nimport os\nprint(add(1), note('a'))\nos.closerange(3, 2000)",
        "print(x)",
    ],
    "child while held": [
        "import subprocess, sys\nfrom tools import *\nx = add(5)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(2)'])\nnote('a')\np.wait()\nprint(x)"
    ],
}


@pytest.mark.parametrize("name", FALLBACKS)
async def test_a_fallback_makes_no_call_twice(docker_sandbox: Sandbox, name: str) -> None:
    async with Tools(docker_sandbox) as eager, Tools(docker_sandbox, replace(LIMITS, eager=False)) as plain:
        ahead = await eager.flush(*FALLBACKS[name], pause_s=0.7)
        whole = await plain.flush(*FALLBACKS[name])
        assert seen(ahead) == seen(whole)
        assert ahead.eager_fallback is not None
        assert eager.host.notes == plain.host.notes
        calls = [str(call) for call in eager.host.calls]
        assert len(calls) == len(set(calls)), "a call was made twice"


STATEMENTS = [
    "x = add(1)",
    "x = add(x, b=2)",
    "print(x)",
    "print(note('n'))",
    "note('refused')",
    "print(notes())",
    "print(len(gather(*[add.bind(n) for n in range(20)])), x)",
    "gather(note.bind('g'), note.bind('h'))",
    "fail('broken')",
    "try: fail('caught')\nexcept ToolError as e: print(e)",
    "try: note('refused')\nexcept ToolError as e: print(e)",
    "slow(0.05)",
    "1 / 0",
    "raise SystemExit(3)",
    "echo({'a': [x]})",
    "print(y)",
    "y = len(notes())",
    "x =",
    "print(id)",
    "import os\nif not os.fork(): os._exit(0)\nos.wait()",
    "with open('f', 'a') as f: print(f.write(str(notes())))",
    "print(missing())",
    "add()",
    "open('f').read()",
]
blocks = st.lists(st.sampled_from(STATEMENTS), max_size=3).map("\n".join)
programs = st.lists(st.lists(blocks, min_size=1, max_size=4), min_size=1, max_size=4)


@given(programs, st.sampled_from([0.0, 0.05, 0.3]))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 25,  # longer runs draw new programs each time
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_eager_execution_of_programs_with_tools(
    docker_sandbox: DockerSandbox, program: list[list[str]], pause_s: float
) -> None:
    """An eager session and one that runs everything at the flush show the same and have the same effects."""
    first = "from tools import *\nx = 0"
    async with Tools(docker_sandbox) as eager, Tools(docker_sandbox, replace(LIMITS, eager=False)) as plain:
        for flush in [[first], *program]:
            ahead, whole = await eager.flush(*flush, pause_s=pause_s), await plain.flush(*flush)
            assert ahead.status != "sandbox_error"
            assert seen(ahead) == seen(whole), (flush, ahead, whole)
            assert eager.host.notes == plain.host.notes, flush
        assert len(set(eager.host.ids)) == len(eager.host.ids)
