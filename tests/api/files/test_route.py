from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.responses_api import engine, serving
from tests.support.serving import Served


@pytest.fixture
async def served(tmp_path: Path) -> AsyncGenerator[Served, None]:
    options = {"files_url": str(tmp_path / "files"), "max_file_bytes": 100_000, "key_files_bytes": 150_000}
    async with serving(engine(), **options) as running:
        yield running


def blobs(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "files").rglob("*") if path.is_file()]


async def test_uploaded_file_is_returned_unchanged(served: Served, tmp_path: Path) -> None:
    files = served.openai.files
    content = bytes(range(256)) * 40
    created = await files.create(file=('räubér "x".csv', content), purpose="user_data")
    assert (created.object, created.bytes, created.purpose) == ("file", len(content), "user_data")
    assert created.filename == 'räubér "x".csv'
    assert created.status == "processed"
    assert created.expires_at is None
    assert await files.retrieve(created.id) == created
    body = await files.content(created.id)
    assert body.content == content
    assert body.response.headers["content-disposition"].startswith("attachment;")
    assert body.response.headers["x-content-type-options"] == "nosniff"
    deleted = await files.delete(created.id)
    assert (deleted.id, deleted.deleted) == (created.id, True)
    assert blobs(tmp_path) == []
    with pytest.raises(openai.NotFoundError):
        await files.retrieve(created.id)


async def test_lists_pages_in_both_orders(served: Served) -> None:
    files = served.openai.files
    ids = [(await files.create(file=(f"{n}.txt", b"x"), purpose="assistants")).id for n in range(5)]
    other = (await files.create(file=("v.txt", b"x"), purpose="vision")).id
    assert [file.id async for file in files.list(limit=2, purpose="assistants")] == ids[::-1]
    assert [file.id async for file in files.list(limit=2, order="asc")] == [*ids, other]
    first = await files.list(limit=3, order="asc")
    assert first.has_more
    assert not (await files.list(limit=3, order="asc", after=first.data[-1].id)).has_more
    with pytest.raises(openai.BadRequestError) as error:
        await files.list(after="file-nothing")
    assert error.value.param == "after"


async def test_expiry_is_validated_and_reported(served: Served) -> None:
    files = served.openai.files
    kept = await files.create(
        file=("a", b"1"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert kept.expires_at is not None
    assert abs(kept.expires_at - kept.created_at - 3600) <= 1
    with pytest.raises(openai.BadRequestError) as error:
        await files.create(
            file=("a", b"1"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 60}
        )
    assert error.value.param == "expires_after.seconds"
    assert [file.id async for file in files.list()] == [kept.id]


async def test_rejects_unknown_purpose_and_keeps_nothing(served: Served, tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        await served.openai.files.create(file=("a", b"1"), purpose="homework")  # type: ignore[arg-type]
    assert error.value.param == "purpose"
    assert blobs(tmp_path) == []
    assert [file.id async for file in served.openai.files.list()] == []


async def test_limits_one_file_and_all_files_of_a_key(served: Served, tmp_path: Path) -> None:
    files = served.openai.files
    with pytest.raises(openai.APIStatusError) as error:
        await files.create(file=("big", bytes(100_001)), purpose="user_data")
    assert (error.value.status_code, error.value.code) == (413, "request_too_large")
    assert blobs(tmp_path) == []
    await files.create(file=("first", bytes(100_000)), purpose="user_data")
    with pytest.raises(openai.APIStatusError) as error:
        await files.create(file=("second", bytes(60_000)), purpose="user_data")
    assert (error.value.status_code, error.value.code) == (413, "storage_limit_exceeded")
    assert len(blobs(tmp_path)) == 1


async def test_size_limit_holds_without_content_length(served: Served, tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield bytes(2000)
        yield b"\r\n--B--\r\n"

    async with httpx.AsyncClient() as client:
        headers = {"Content-Type": "multipart/form-data; boundary=B"}
        answer = await client.post(f"{served.url}/v1/files", content=body(), headers=headers)
    assert answer.status_code == 413
    assert blobs(tmp_path) == []


FILE_PART = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'
PURPOSE_PART = b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'


@pytest.mark.parametrize(
    ("body", "content_type", "param"),
    [
        (b"{}", "application/json", None),
        (b"", "multipart/form-data; boundary=B", None),
        (FILE_PART, "multipart/form-data; boundary=B", None),
        (FILE_PART + FILE_PART + PURPOSE_PART + b"--B--\r\n", "multipart/form-data; boundary=B", None),
        (PURPOSE_PART + b"--B--\r\n", "multipart/form-data; boundary=B", "file"),
        (FILE_PART + b"--B--\r\n", "multipart/form-data; boundary=B", "purpose"),
        (PURPOSE_PART * 20 + FILE_PART + b"--B--\r\n", "multipart/form-data; boundary=B", None),
        (
            FILE_PART.replace(b'name="file"', b'name="other"') + b"--B--\r\n",
            "multipart/form-data; boundary=B",
            None,
        ),
        (b"--B\r\nX: y\r\n\r\nx\r\n--B--\r\n", "multipart/form-data; boundary=B", None),
        (FILE_PART, "multipart/form-data", None),
    ],
)
async def test_rejects_broken_forms(
    served: Served, tmp_path: Path, body: bytes, content_type: str, param: str | None
) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(
            f"{served.url}/v1/files", content=body, headers={"Content-Type": content_type}
        )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert blobs(tmp_path) == []


async def test_accepts_the_file_before_its_purpose(served: Served) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(
            f"{served.url}/v1/files",
            content=FILE_PART + PURPOSE_PART + b"--B--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=B"},
        )
    assert (answer.status_code, answer.json()["bytes"]) == (200, 1)


async def test_rejects_compressed_uploads(served: Served) -> None:
    async with httpx.AsyncClient() as client:
        headers = {"Content-Type": "multipart/form-data; boundary=B", "Content-Encoding": "gzip"}
        answer = await client.post(f"{served.url}/v1/files", content=b"x", headers=headers)
    assert answer.status_code == 415


async def test_files_belong_to_their_key(tmp_path: Path) -> None:
    keys = "sha256:" + hashlib.sha256(b"ann").hexdigest() + ",sha256:" + hashlib.sha256(b"bob").hexdigest()
    async with serving(engine(), key="ann", api_keys=keys, files_url=str(tmp_path)) as served:
        mine = await served.openai.files.create(file=("a", b"secret"), purpose="user_data")
        bob = served.openai.with_options(api_key="bob")
        for request in (bob.files.retrieve, bob.files.content, bob.files.delete):
            with pytest.raises(openai.NotFoundError):
                await request(mine.id)
        assert [file.id async for file in bob.files.list()] == []
        with pytest.raises(openai.BadRequestError):
            await bob.files.list(after=mine.id)
        assert (await served.openai.files.content(mine.id)).content == b"secret"


async def test_lost_content_is_an_error_response(served: Served, tmp_path: Path) -> None:
    created = await served.openai.files.create(file=("a", b"1"), purpose="user_data")
    for path in blobs(tmp_path):
        path.unlink()
    with pytest.raises(openai.APIStatusError) as error:
        await served.openai.files.content(created.id)
    assert (error.value.status_code, error.value.code) == (503, "file_store_unavailable")
