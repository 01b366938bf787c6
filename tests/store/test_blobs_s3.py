"""Contents in an S3-compatible store. Needs a server and a client: `pip install s3fs 'moto[server]'`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.store.blobs import BlobError, BlobStore, open_blobs, whole

pytest.importorskip("s3fs")
pytest.importorskip("flask", reason="moto's server needs it: pip install 'moto[server]'")
moto_server = pytest.importorskip("moto.server")

pytestmark = pytest.mark.filterwarnings("ignore")  # of botocore and of moto
NAME, OTHER = "0123456789abcdef" * 2, "f" * 32
MB = 1 << 20


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def s3(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[BlobStore, Any]]:
    """A store in a new bucket, and a client of the bucket that the test uses to look behind it."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]:
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    client = s3fs.S3FileSystem()
    bucket = f"bucket-{abs(hash(str(tmp_path)))}"
    client.mkdir(bucket)
    yield open_blobs(f"s3://{bucket}/prefix"), client
    s3fs.S3FileSystem.clear_instance_cache()


async def test_contents_are_written_read_listed_and_deleted(s3: tuple[BlobStore, Any]) -> None:
    store, _ = s3
    assert await store.names(older_than_s=0) == []
    async with store.write(NAME) as writer:
        await writer.write(b"first ")
        await writer.write(b"second")
    assert await whole(store.read(NAME)) == b"first second"
    assert await store.names(older_than_s=-5) == [NAME]
    assert await store.names(older_than_s=60) == []
    async with store.write(OTHER):
        pass
    assert await whole(store.read(OTHER)) == b""
    await store.delete(NAME)
    await store.delete(NAME)  # without effect
    assert await store.names(older_than_s=-5) == [OTHER]
    with pytest.raises(BlobError, match="missing"):
        await whole(store.read(NAME))


async def test_large_content_is_uploaded_in_parts(s3: tuple[BlobStore, Any]) -> None:
    store, _ = s3
    chunk = os.urandom(MB)
    async with store.write(NAME) as writer:
        for _ in range(56):
            await writer.write(chunk)
    sizes = 0
    async for part in store.read(NAME):
        assert part in chunk * 2
        sizes += len(part)
    assert sizes == 56 * MB


@pytest.mark.parametrize("megabytes", [1, 56], ids=["one part", "several parts"])
async def test_failed_upload_leaves_nothing(s3: tuple[BlobStore, Any], megabytes: int) -> None:
    store, client = s3

    async def fail() -> None:
        async with store.write(NAME) as writer:
            for _ in range(megabytes):
                await writer.write(bytes(MB))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await store.names(older_than_s=-5) == []
    bucket = store._root.partition("/")[0]  # type: ignore[attr-defined]
    assert not client.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads")


async def test_unreachable_server_is_a_blob_error(
    s3: tuple[BlobStore, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    store = open_blobs("s3://bucket/prefix?x=1")
    with pytest.raises(BlobError, match="the file store failed"):
        async with store.write(NAME) as writer:
            await writer.write(b"x")


async def test_contents_of_another_server_are_found_after_a_listing(s3: tuple[BlobStore, Any]) -> None:
    import s3fs

    store, _ = s3
    assert await store.names(older_than_s=-5) == []
    async with store.write(OTHER) as writer:
        await writer.write(b"x")
    assert await store.names(older_than_s=-5) == [OTHER]
    root = store._root  # type: ignore[attr-defined]
    s3fs.S3FileSystem.clear_instance_cache()
    another = open_blobs(f"s3://{root}")
    async with another.write(NAME) as writer:
        await writer.write(b"y")
    await another.delete(OTHER)
    assert await whole(store.read(NAME)) == b"y"
    assert await store.names(older_than_s=-5) == [NAME]
