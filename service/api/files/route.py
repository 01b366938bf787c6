"""Routes of the Files API: upload, list, retrieve, download and delete files."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.api import audit
from service.api.errors import ApiError, speaks_anthropic
from service.api.files.multipart import read_form
from service.api.schemas import FILE, FILE_CONTENT, FILE_LIST
from service.api.state import CurrentServer, Owner
from service.common.json import Json, JsonResponse, json_time
from service.store.blobs import BlobError
from service.store.containers import FILE_PREFIX, ContainerStore
from service.store.files import FileStore, FileTooLargeError, StoredFile

router = APIRouter(prefix="/v1/files", tags=["Files"])

PURPOSES: Final = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
"""Purposes that OpenAI accepts for uploads. They have no effect here."""
_CURSOR: Final = "page_"
"""Prefix of Anthropic's cursors."""
_MIN_SECONDS, _MAX_SECONDS = 3600, 30 * 86_400
"""OpenAI's bounds for ``expires_after[seconds]``."""


async def _files_of(request: Request) -> FileStore:
    files: FileStore = request.app.state.files
    return files


Files = Annotated[FileStore, Depends(_files_of)]

_UPLOAD: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": _MIN_SECONDS,
                            "maximum": _MAX_SECONDS,
                        },
                    },
                }
            }
        },
    }
}


@router.post("", response_class=JsonResponse, responses=FILE, openapi_extra=_UPLOAD)
async def upload_file(request: Request, server: CurrentServer, files: Files, owner: Owner) -> Response:
    """Upload a file as a multipart form. It is stored while it arrives."""
    await server.quotas.check(owner, storage=True)
    saved: list[StoredFile] = []

    async def save(filename: str, content: AsyncIterator[bytes]) -> None:
        # Listed once the form is complete. The expiry removes it if this process ends before that.
        saved.append(
            await stored(
                files,
                content,
                owner=owner,
                filename=filename,
                purpose="",
                expires_after_s=86_400.0,
                listed=False,
            )
        )

    try:
        fields = await read_form(request, save)
        if not saved:
            raise ApiError(
                400, "Missing required parameter: 'file'.", param="file", code="missing_required_parameter"
            )
        default = "user_data" if speaks_anthropic(request.scope) else None
        purpose, expires_after_s = _purpose(fields.get("purpose") or default), _expires_after_s(fields)
        file = await files.describe(saved[0], purpose=purpose, expires_after_s=expires_after_s)
    except BaseException:
        for file in saved:
            await files.delete(file.id, owner)
        raise
    return JsonResponse(_object_for(request, file))


@router.get("", response_class=JsonResponse, responses=FILE_LIST)
async def list_files(
    request: Request,
    files: Files,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    page: str | None = None,
    purpose: str | None = None,
) -> Response:
    """List the key's files, page by page. ``page`` is Anthropic's cursor."""
    if page is not None:
        after = page.removeprefix(_CURSOR)
    try:
        found, has_more = await files.page(owner, limit=limit, order=order, after=after, purpose=purpose)
    except KeyError:
        raise ApiError(
            400, f"'after': there is no file '{after}'.", param="after", code="invalid_value"
        ) from None
    listed = list_object([_object_for(request, file) for file in found], has_more=has_more)
    if speaks_anthropic(request.scope):
        listed["next_page"] = f"{_CURSOR}{found[-1].id}" if has_more else None
    return JsonResponse(listed)


@router.get("/{file_id}", response_class=JsonResponse, responses=FILE)
async def retrieve_file(file_id: str, request: Request, files: Files, owner: Owner) -> Response:
    """Return a file's metadata."""
    return JsonResponse(_object_for(request, await find(files, file_id, owner)))


@router.get("/{file_id}/content", response_class=StreamingResponse, responses=FILE_CONTENT)
async def download_file(file_id: str, files: Files, request: Request, owner: Owner) -> Response:
    """Download the content of an upload, or of a file in a container."""
    if file_id.startswith(FILE_PREFIX):
        store: ContainerStore = request.app.state.containers.store
        if (written := await store.find_file(file_id, owner)) is not None:
            return await download(store.content(written), written.path.rpartition("/")[2], written.bytes)
    file = await find(files, file_id, owner)
    return await download(files.content(file), file.filename, file.bytes)


@router.delete("/{file_id}", response_class=JsonResponse)
async def delete_file(file_id: str, request: Request, files: Files, owner: Owner) -> Json:
    """Delete a file. Containers that already have it keep their copy."""
    if not await files.delete(file_id, owner):
        raise _not_found(file_id)
    if speaks_anthropic(request.scope):
        return {"id": file_id, "type": "file_deleted"}
    return {"id": file_id, "object": "file", "deleted": True}


async def stored(files: FileStore, content: AsyncIterator[bytes], **metadata: Any) -> StoredFile:
    """Store ``content``; see `FileStore.put`.

    Raises:
        ApiError: 413 if it exceeds a limit, 503 if the store failed.
    """
    try:
        file = await files.put(content, **metadata)
    except FileTooLargeError as error:
        raise too_large(error) from None
    except BlobError as error:
        raise unavailable(error) from error
    audit.record("file.create", target=file.id)
    return file


async def find(files: FileStore, file_id: str, owner: str, param: str = "file_id") -> StoredFile:
    """Return a file of ``owner``.

    Raises:
        ApiError: 404 if there is none.
    """
    file = await files.get(file_id, owner)
    if file is None:
        raise _not_found(file_id, param)
    return file


def _object_for(request: Request, file: StoredFile) -> Json:
    """Return the file object in the form of the client's API."""
    if not speaks_anthropic(request.scope):
        return file_object(file)
    return {
        "id": file.id,
        "type": "file",
        "filename": file.filename,
        "mime_type": mimetypes.guess_type(file.filename)[0] or "application/octet-stream",
        "size_bytes": file.bytes,
        "created_at": json_time(file.created_at),
        "downloadable": True,
    }


def file_object(file: StoredFile) -> Json:
    """Return OpenAI's file object."""
    expiry: Json = {} if file.expires_at is None else {"expires_at": int(file.expires_at)}
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        **expiry,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def list_object(data: list[Json], *, has_more: bool) -> Json:
    """Return one page of a list in OpenAI's form."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


async def download(
    chunks: AsyncGenerator[bytes, None], filename: str, size: int, media_type: str | None = None
) -> Response:
    """Return a response with a content. Browsers save it and never show it as a page of this server.

    Raises:
        ApiError: 503 if the content can't be read.
    """
    try:
        first = await anext(chunks, b"")  # an error before the status line is an ordinary error response
    except BlobError as error:
        raise unavailable(error) from error

    async def body() -> AsyncGenerator[bytes, None]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    headers = {
        "Content-Length": str(size),
        "Content-Disposition": _disposition(filename),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    return StreamingResponse(body(), headers=headers, media_type=media_type or "application/octet-stream")


def _disposition(filename: str) -> str:
    plain = "".join(
        char if char.isascii() and char.isprintable() and char not in '"\\%' else "_" for char in filename
    )
    encoded = quote(filename.encode("utf-8", "replace"), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def too_large(error: FileTooLargeError) -> ApiError:
    """Return the API error for a file above a limit."""
    if error.of_owner:
        message = f"The files of this key would exceed {error.limit} bytes: delete some first."
        return ApiError(413, message, param="file", code="storage_limit_exceeded")
    return ApiError(413, f"The file is larger than {error.limit} bytes.", param="file")


def unavailable(error: BlobError) -> ApiError:
    """Return the API error for a failure of the file store."""
    return ApiError(503, f"The file store is unavailable: {error}.", code="file_store_unavailable")


def _purpose(value: str | None) -> str:
    if not value:
        raise ApiError(
            400, "Missing required parameter: 'purpose'.", param="purpose", code="missing_required_parameter"
        )
    if value not in PURPOSES:
        message = f"'purpose': it must be one of {', '.join(PURPOSES)}."
        raise ApiError(400, message, param="purpose", code="invalid_value")
    return value


def _expires_after_s(fields: Mapping[str, str]) -> float | None:
    anchor, seconds = (fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    param = "expires_after"
    if anchor != "created_at":
        raise ApiError(
            400, f"'{param}.anchor': it must be 'created_at'.", param=f"{param}.anchor", code="invalid_value"
        )
    if not (
        seconds and seconds.isascii() and seconds.isdigit() and _MIN_SECONDS <= int(seconds) <= _MAX_SECONDS
    ):
        message = f"'{param}.seconds': it must be an integer from {_MIN_SECONDS} to {_MAX_SECONDS}."
        raise ApiError(400, message, param=f"{param}.seconds", code="invalid_value")
    return float(seconds)


def _not_found(file_id: str, param: str = "file_id") -> ApiError:
    return ApiError(404, f"No such File object: {file_id[:80]}", param=param, code="file_not_found")
