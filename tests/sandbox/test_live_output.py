"""Live output of real sandboxes: the same result with and without it, and what a viewer sees meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings

from service.sandbox.base import ExecutionResult, OutputChunk, Sandbox, Session, SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from tests.support.eager_programs import FORGET, Program, programs

EXAMPLES = int(os.environ.get("IHGRPO_DIFFERENTIAL_EXAMPLES", "10"))
pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1500 + 30 * EXAMPLES),
    pytest.mark.asyncio(loop_scope="module"),
]
LIMITS = SessionLimits(run_limit_s=30)


@pytest.fixture(params=["docker_sandbox", "runner_client", "bubblewrap_sandbox"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    found: Sandbox = request.getfixturevalue(request.param)
    return found


class Viewer:
    """Collects the chunks of a flush. ``seen`` is set at the first one that ends with ``awaited``."""

    def __init__(self, awaited: str = "\n") -> None:
        self.chunks: list[OutputChunk] = []
        self.seen = asyncio.Event()
        self._awaited = awaited

    def __call__(self, chunk: OutputChunk) -> None:
        self.chunks.append(chunk)
        if self.text().endswith(self._awaited):
            self.seen.set()

    def text(self, stream: str = "stdout", attempt: int | None = None) -> str:
        """Return the text of the last attempt, or of ``attempt``."""
        attempt = attempt or max((chunk.attempt for chunk in self.chunks), default=1)
        return "".join(
            chunk.text for chunk in self.chunks if (chunk.stream, chunk.attempt) == (stream, attempt)
        )


async def flushed(session: Session, blocks: list[str], viewer: Viewer | None = None) -> ExecutionResult:
    for block in blocks:
        await session.invoke(block)
    return await (session.flush() if viewer is None else session.flush(viewer))


async def test_output_comes_before_the_code_ends(sandbox: Sandbox) -> None:
    session, viewer = sandbox.session(LIMITS), Viewer()
    await session.invoke("print('begun')\nimport time\ntime.sleep(25)")
    flushing = asyncio.create_task(session.flush(viewer))
    await viewer.seen.wait()
    assert not flushing.done()
    assert viewer.chunks == [OutputChunk("stdout", "begun\n")]
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)
    await session.close()


async def test_both_streams_and_split_characters(sandbox: Sandbox) -> None:
    session, viewer = sandbox.session(LIMITS), Viewer()
    code = (
        "import os, time\nfor byte in 'a\u20ac\U0001f600'.encode():\n    os.write(1, bytes([byte]))\n"
        "    time.sleep(0.06)\nos.write(1, b'\\xe2\\x82')\nos.write(2, b'<|im_end|>')\nNone"
    )
    result = await flushed(session, [code], viewer)
    assert viewer.text() == result.stdout == "a€😀\\xe2\\x82"
    assert viewer.text("stderr") == result.stderr == "<|im_end|>"
    assert len(viewer.chunks) > 2
    await session.close()


async def test_an_eager_run_shows_nothing_before_its_flush(sandbox: Sandbox) -> None:
    session, viewer = sandbox.session(LIMITS), Viewer()
    blocks = ["print('first')", "import time\nprint('second')\ntime.sleep(1.5)\nprint('third')"]
    for block in blocks:
        await session.invoke(block)
    await asyncio.sleep(0.5)
    assert viewer.chunks == []
    result = await session.flush(viewer)
    assert result.eager_fallback is None
    assert viewer.text() == result.stdout == "first\nsecond\nthird\n"
    assert {chunk.attempt for chunk in viewer.chunks} == {1}
    await session.close()


async def test_a_second_run_replaces_the_first(sandbox: Sandbox) -> None:
    session, viewer = sandbox.session(LIMITS), Viewer()
    result = await flushed(
        session, ["import time\nprint('slow')\ntime.sleep(0.5)", "if True:", "    print(2)"], viewer
    )
    assert result.eager_fallback == "not_separable"
    assert viewer.text() == result.stdout == "slow\n2\n"
    assert viewer.text(attempt=1) in ("", "slow\n")
    await session.close()


async def test_the_live_output_of_a_failed_run_is_only_for_display(sandbox: Sandbox) -> None:
    session, viewer = sandbox.session(LIMITS), Viewer()
    result = await flushed(session, ["x = 1\nprint('shown')", "print('too')\n1 / 0"], viewer)
    assert (result.status, viewer.text(), viewer.text("stderr")) == ("error", "shown\ntoo\n", result.stderr)
    assert (await flushed(session, ["'x' in globals()"])).stdout == "False\n"
    await session.close()


async def test_live_output_is_bounded(sandbox: Sandbox) -> None:
    session, viewer = sandbox.session(LIMITS), Viewer()
    result = await flushed(session, ["print('line\\n' * 200_000)"], viewer)
    assert result.status == "ok"
    # A slow owner misses parts, which are marked.
    assert 0 < len(viewer.text()) <= 64 << 10
    assert set(viewer.text()) <= set("line\n")
    assert any(chunk.truncated for chunk in viewer.chunks)
    assert result.stdout == (await flushed(session, ["print('line\\n' * 200_000)"])).stdout
    await session.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pairs(docker_sandbox: DockerSandbox) -> AsyncGenerator[list[tuple[Session, Session]]]:
    """Sessions for flushes with and without live output, with and without eager execution."""
    limits = [SessionLimits(run_limit_s=30, eager=eager) for eager in (True, False)]
    found = [(docker_sandbox.session(each), docker_sandbox.session(each)) for each in limits]
    yield found
    for pair in found:
        for session in pair:
            await session.close()


@given(programs())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_the_result_is_the_same_with_and_without_live_output(
    pairs: list[tuple[Session, Session]], program: Program
) -> None:
    for blocks in [*program.flushes, [FORGET]]:
        for shown, plain in pairs:
            viewer = Viewer()
            live = await flushed(shown, blocks, viewer)
            assert fixed(live) == fixed(await flushed(plain, blocks))
            is_void = live.eager_fallback is not None and {chunk.attempt for chunk in viewer.chunks} == {1}
            if not is_void:
                assert (viewer.text(), viewer.text("stderr")) == (live.stdout, live.stderr)


def fixed(result: ExecutionResult) -> tuple[object, ...]:
    """Return the fields that do not depend on times and containers."""
    return result.stdout, result.stderr, result.status, result.exit_code, result.signal
