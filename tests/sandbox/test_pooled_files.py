from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.sandbox.base import SandboxError, SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings
from service.sandbox.pool import Pool
from service.sandbox.pooled_files import PooledFileSession
from service.sandbox.worker_protocol import Done
from tests.support.fake_worker import Factory, FakeWorker
from tests.support.until import until

LIMITS = SessionLimits(run_limit_s=1.0, figures="png")
DONE = Done(op="done", error=None)


async def pool_of(factory: Factory, **options: Any) -> Pool:
    pool = Pool(factory, size=1, maximum=2, concurrency=1, queue_timeout_s=1.0, **options)
    await pool.start()
    return pool


def session_of(pool: Pool, limits: SessionLimits = LIMITS) -> PooledFileSession:
    return PooledFileSession(pool, limits, DockerSandboxSettings())


async def parts(*chunks: bytes | Exception) -> AsyncIterator[bytes]:
    for chunk in chunks:
        if isinstance(chunk, Exception):
            raise chunk
        yield chunk


async def test_sends_an_input_after_its_name_and_size() -> None:
    factory = Factory()
    pool = await pool_of(factory)
    session = session_of(pool)
    await session.lease()
    worker = factory.made[0]
    worker.answers.put_nowait(DONE)
    await session.put("a", 3, parts(b"12", b"3"))
    assert worker.sent[-1] == {"op": "put", "name": "a", "size": 3}
    assert worker.sent_bytes == b"123"
    assert worker.memory_mb == DockerSandboxSettings().memory_mb + 1
    await pool.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((b"12",), "does not have 3 bytes"),
        ((b"1234",), "does not have 3 bytes"),
        ((b"12", OSError("disk error")), "can't be read: disk error"),
        ((b"12", ValueError("bad blob")), "can't be read: bad blob"),
        ((KeyError("lost"),), "can't be read: 'lost'"),
    ],
)
async def test_an_input_that_can_not_be_sent_loses_the_container(
    content: tuple[bytes | Exception, ...], message: str
) -> None:
    factory = Factory()
    pool = await pool_of(factory)
    session = session_of(pool)
    await session.lease()
    with pytest.raises(SandboxError, match=message):
        await session.put("a", 3, parts(*content))
    assert not session.is_alive
    await until(lambda: factory.made[0].destroyed == 1)
    await session.lease()
    assert session._worker is not factory.made[0]
    factory.made[1].answers.put_nowait(DONE)
    await session.put("a", 3, parts(b"123"))
    await pool.stop()


async def test_a_cancelled_request_is_counted_as_cancelled() -> None:
    factory = Factory()
    pool = await pool_of(factory)
    session = session_of(pool)
    await session.lease()
    listing = asyncio.create_task(session.changes())
    await until(lambda: factory.made[0].sent[-1] == {"op": "files"})
    listing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listing
    await until(lambda: factory.made[0].destroyed == 1)
    assert pool.stats().kills == {"cancelled": 1}
    await pool.stop()


@pytest.mark.parametrize("resized", [True, False])
async def test_a_container_with_another_memory_limit_is_not_reused(resized: bool) -> None:
    factory = Factory()
    pool = await pool_of(factory, reuse_for_s=100.0)
    session = session_of(pool, SessionLimits(run_limit_s=1.0, memory_mb=700) if resized else LIMITS)
    await session.lease()
    worker: FakeWorker = factory.made[0]
    worker.answers.put_nowait(DONE)
    await session.close()
    if resized:
        await until(lambda: worker.destroyed == 1)
        assert worker.memory_mb == 700
    else:
        await until(lambda: pool.stats().reused == 1)
    await pool.stop()


def pdf(text: str) -> bytes:
    """Return a PDF of one page with ``text``."""
    stream = f"BT /F 12 Tf 20 20 Td ({text}) Tj ET"
    objects = (
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 50]/Contents 4 0 R"
        "/Resources<</Font<</F<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>>>",
        f"<</Length {len(stream)}>>stream\n{stream}\nendstream",
    )
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj{body}endobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    trailer = f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(data)}\n%%EOF"
    return data + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()


@pytest.mark.docker
@pytest.mark.asyncio(loop_scope="module")
async def test_the_text_of_a_pdf_comes_and_goes_with_it(docker_sandbox: DockerSandbox) -> None:
    session = docker_sandbox.file_session(SessionLimits(run_limit_s=20.0))
    await session.lease()

    async def inputs() -> str:
        await session.invoke("import os; print(sorted(os.listdir('/inputs')))")
        return (await session.flush()).stdout.strip()

    data = pdf("The sum is 42")
    await session.put("A.PDF", len(data), parts(data))
    await session.invoke("print(open('/inputs/A.PDF.txt').read())")
    result = await session.flush()
    assert result.stdout.strip() == "The sum is 42", result
    assert await inputs() == "['A.PDF', 'A.PDF.txt']"
    await session.remove("A.PDF")
    assert await inputs() == "[]"
    await session.put("b.pdf.txt", 1, parts(b"1"))  # not the text of the PDF
    await session.put("b.pdf", 3, parts(b"bad"))
    await session.remove("b.pdf")
    assert await inputs() == "['b.pdf.txt']"
    await session.close()
