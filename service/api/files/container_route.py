"""Routes of the Containers API: containers that live across requests, and their files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, ValidationError

from service.api.errors import ApiError, api_error_of
from service.api.files.choice import CurrentContainers, choose_container
from service.api.files.containers import (
    Containers,
    ContainerUse,
    ContainerWish,
    container_object,
    expired,
    not_found,
)
from service.api.files.held_session import HeldSession
from service.api.files.inputs import INLINE_DAYS, InputFile, named
from service.api.files.multipart import read_form
from service.api.files.route import download, find, list_object, stored
from service.api.schemas import CONTAINER, CONTAINER_FILE, CONTAINER_FILE_LIST, CONTAINER_LIST, FILE_CONTENT
from service.api.state import Owner
from service.api.tools.definitions import AutoContainer
from service.api.validation import RequestBody, RequestModel, only
from service.common.json import Json, JsonResponse
from service.sandbox.base import SandboxError
from service.store.containers import ContainerFile, StoredContainer
from service.store.files import StoredFile

router = APIRouter(prefix="/v1/containers", tags=["Containers"])
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]


class ExpiresAfter(RequestModel):
    anchor: Literal["last_active_at"]
    minutes: int = Field(ge=1)


class ContainerRequest(RequestBody):
    """Body of ``POST /v1/containers``."""

    name: str = Field(max_length=256)
    file_ids: Annotated[list[str] | None, Field(max_length=64)] = None
    expires_after: ExpiresAfter | None = None
    """Clipped to the server's own limit."""
    memory_limit: Annotated[str | None, Field(pattern=r"^[1-9][0-9]{0,5}[mg]$")] = None
    network_policy: Annotated[object, only({"type": "disabled"})] = None
    skills: Annotated[object, only([])] = None


class ContainerFileRequest(RequestBody):
    """JSON body of ``POST /v1/containers/{container_id}/files``."""

    file_id: str


@router.post("", response_class=JsonResponse, responses=CONTAINER)
async def create_container(body: ContainerRequest, containers: CurrentContainers, owner: Owner) -> Response:
    """Create a container. It is leased and gets its files before the response."""
    choice = AutoContainer(file_ids=body.file_ids, memory_limit=body.memory_limit)
    use = await choose_container(containers, choice, [], owner, param="file_ids")
    minutes = None if body.expires_after is None else body.expires_after.minutes
    use.live = containers.new(owner, choice.memory_mb, body.name, minutes)
    async with use.acquire(""):
        await _make_ready(containers, use)
    return JsonResponse(container_object(use.live.record))


async def _make_ready(containers: Containers, use: ContainerUse) -> None:
    try:
        await HeldSession(use.live, use.new_inputs, containers, "").make_ready()
    except SandboxError as error:
        raise ApiError(503, f"No container could be started: {error}.", code="sandbox_unavailable") from error


@router.get("", response_class=JsonResponse, responses=CONTAINER_LIST)
async def list_containers(
    containers: CurrentContainers,
    owner: Owner,
    limit: Limit = 20,
    order: Order = "desc",
    after: str | None = None,
    name: str | None = None,
) -> Response:
    """List the key's containers, page by page. Expired ones are listed while their files are kept."""
    try:
        page, more = await containers.store.page(owner, limit=limit, order=order, after=after, name=name)
    except KeyError:
        raise _unknown_after(after) from None
    return JsonResponse(list_object([container_object(record) for record in page], has_more=more))


@router.get("/{container_id}", response_class=JsonResponse, responses=CONTAINER)
async def retrieve_container(container_id: str, containers: CurrentContainers, owner: Owner) -> Response:
    """Return a container."""
    return JsonResponse(container_object(await _find(containers, container_id, owner)))


@router.delete("/{container_id}", response_class=JsonResponse)
async def delete_container(container_id: str, containers: CurrentContainers, owner: Owner) -> Json:
    """End a container and delete its files."""
    await _find(containers, container_id, owner)
    live = containers.get(container_id, owner)
    if live is not None:
        async with containers.acquire(live):
            await containers.end(live, "deleted")
    await containers.store.delete(container_id)
    return {"id": container_id, "object": "container.deleted", "deleted": True}


@router.post("/{container_id}/files", response_class=JsonResponse, responses=CONTAINER_FILE)
async def create_container_file(
    container_id: str, request: Request, containers: CurrentContainers, owner: Owner
) -> Response:
    """Copy a file into a container for its code to read: a form with ``file``, or JSON with ``file_id``."""
    await _find(containers, container_id, owner)
    live = containers.get(container_id, owner)
    if live is None:
        raise expired(container_id)
    file = await _sent_file(request, containers, owner)
    async with containers.acquire(live):
        [item] = named([file], [one.name for one in live.inputs])
        copied = await _copy(containers, ContainerUse(containers, owner, ContainerWish(), live, []), item)
    return JsonResponse(file_object(copied))


async def _sent_file(request: Request, containers: Containers, owner: str) -> StoredFile:
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        saved: list[StoredFile] = []

        async def save(filename: str, content: AsyncIterator[bytes]) -> None:
            saved.append(
                await stored(
                    containers.files,
                    content,
                    owner=owner,
                    filename=filename,
                    purpose="user_data",
                    expires_after_s=INLINE_DAYS * 86_400.0,
                    listed=False,
                )
            )

        fields = await read_form(request, save)
        if saved:
            return saved[0]
        if "file_id" in fields:
            return await find(containers.files, fields["file_id"], owner)
        raise ApiError(
            400, "Missing required parameter: 'file'.", param="file", code="missing_required_parameter"
        )
    try:
        body = ContainerFileRequest.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors()[0]
        raise api_error_of(first, first["loc"], None) from None
    return await find(containers.files, body.file_id, owner)


async def _copy(containers: Containers, use: ContainerUse, item: InputFile) -> ContainerFile:
    session = HeldSession(use.live, [], containers, "")
    try:
        await session.make_ready()
        return await session.add_input(item)
    except SandboxError as error:
        raise ApiError(
            400, f"The file could not be copied: {error}.", param="file", code="container_file_rejected"
        ) from error


@router.get("/{container_id}/files", response_class=JsonResponse, responses=CONTAINER_FILE_LIST)
async def list_container_files(
    container_id: str,
    containers: CurrentContainers,
    owner: Owner,
    limit: Limit = 20,
    order: Order = "desc",
    after: str | None = None,
) -> Response:
    """List the current files of a container: its inputs, and the files that code wrote."""
    await _find(containers, container_id, owner)
    try:
        page, more = await containers.store.files_page(container_id, limit=limit, order=order, after=after)
    except KeyError:
        raise _unknown_after(after) from None
    return JsonResponse(list_object([file_object(file) for file in page], has_more=more))


@router.get("/{container_id}/files/{file_id}", response_class=JsonResponse, responses=CONTAINER_FILE)
async def retrieve_container_file(
    container_id: str, file_id: str, containers: CurrentContainers, owner: Owner
) -> Response:
    """Return the metadata of a file."""
    return JsonResponse(file_object(await _find_file(containers, container_id, file_id, owner)))


@router.get(
    "/{container_id}/files/{file_id}/content", response_class=StreamingResponse, responses=FILE_CONTENT
)
async def download_container_file(
    container_id: str, file_id: str, containers: CurrentContainers, owner: Owner
) -> Response:
    """Download the content of a file, as it was at the end of the flush that wrote it."""
    file = await _find_file(containers, container_id, file_id, owner)
    media_type = "image/png" if file.path.startswith("/figures/") and file.path.endswith(".png") else None
    return await download(
        containers.store.content(file), file.path.rpartition("/")[2], file.bytes, media_type
    )


@router.delete("/{container_id}/files/{file_id}", response_class=JsonResponse)
async def delete_container_file(
    container_id: str, file_id: str, containers: CurrentContainers, owner: Owner
) -> Json:
    """Delete a file. An input is also removed from the container; a file that code wrote stays in it."""
    file = await _find_file(containers, container_id, file_id, owner)
    live = containers.get(container_id, owner)
    if live is not None and file.source == "user":
        async with containers.acquire(live):
            item = next((item for item in live.inputs if item.path == file.path), None)
            if item is not None:
                live.is_frozen = False
                await live.session.remove(item.name)
                live.inputs.remove(item)
                await containers.update(live, inputs=[one.as_stored() for one in live.inputs])
    await containers.store.delete_file(file)
    return {"id": file_id, "object": "container.file.deleted", "deleted": True}


def file_object(file: ContainerFile) -> Json:
    """Return OpenAI's object for a file in a container, with its digest."""
    return {
        "id": file.id,
        "object": "container.file",
        "bytes": file.bytes,
        "container_id": file.container_id,
        "created_at": int(file.created_at),
        "path": file.path,
        "source": file.source,
        "sha256": file.sha256,
    }


async def _find(containers: Containers, container_id: str, owner: str) -> StoredContainer:
    record = await containers.store.get(container_id, owner)
    if record is None:
        raise not_found(container_id)
    return record


async def _find_file(containers: Containers, container_id: str, file_id: str, owner: str) -> ContainerFile:
    await _find(containers, container_id, owner)
    file = await containers.store.get_file(container_id, file_id)
    if file is None:
        raise ApiError(
            404,
            f"File with id '{file_id[:80]}' not found in this container.",
            param="file_id",
            code="file_not_found",
        )
    return file


def _unknown_after(after: str | None) -> ApiError:
    return ApiError(400, f"'after': there is no object '{after}'.", param="after", code="invalid_value")
