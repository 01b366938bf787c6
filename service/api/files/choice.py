"""The container of a request, from its fields and the files of its messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypedDict, Unpack

from fastapi import Depends

from service.api.errors import ApiError
from service.api.files.containers import Containers, ContainerUse, ContainerWish
from service.api.files.inputs import FilePart, resolve
from service.api.state import containers_of
from service.api.tools.definitions import AutoContainer, Figures, OnExpired

CurrentContainers = Annotated[Containers, Depends(containers_of)]


class NewContainerOptions(TypedDict, total=False):
    """Optional arguments of `choose_container`."""

    on_expired: OnExpired | None
    previous: tuple[str, str] | None
    figures: Figures | None


async def container_of_request(
    containers: Containers,
    choice: str | AutoContainer | None,
    parts: Sequence[FilePart],
    owner: str,
    *,
    param: str,
    by_default: bool,
    obstacle: str | None = None,
    **options: Unpack[NewContainerOptions],
) -> ContainerUse | None:
    """Return the container of a request whose code needs one that lives across requests, otherwise None.

    Args:
        containers: of this server.
        choice: the container that the client asks for. None if it asks for none.
        parts: files of the messages.
        owner: the request's key.
        param: path of the field.
        by_default: use such a container, if this server has them, for a request that asks for none and has no
            files.
        obstacle: the reason why this request can't use files or such a container.
        options: see `choose_container`.

    Raises:
        ApiError: 400 if there is an obstacle and the client asks for a container or has files; otherwise as
            `choose_container`.
    """
    if choice is None and not parts and (obstacle is not None or not (by_default and containers.enabled)):
        return None
    if obstacle is not None:
        at = parts[0].param if choice is None else param
        raise ApiError(400, f"'{at}': {obstacle}", param=at, code="unsupported_parameter")
    return await choose_container(containers, choice, parts, owner, param=param, **options)


async def choose_container(
    containers: Containers,
    choice: str | AutoContainer | None,
    parts: Sequence[FilePart],
    owner: str,
    *,
    param: str,
    on_expired: OnExpired | None = None,
    previous: tuple[str, str] | None = None,
    figures: Figures | None = None,
) -> ContainerUse:
    """Return the container for a request; see `ContainerWish`.

    Args:
        containers: of this server.
        choice: the request's field.
        parts: files of the messages.
        owner: the request's key.
        param: path of the field.
        on_expired: handling of an explicit container that has expired.
        previous: container and response of the last code that ran in the conversation.
        figures: format of figures; None for PNG.

    Raises:
        ApiError: 400 if this server has no such containers; otherwise as `Containers.use` and `resolve`.
    """
    if not containers.enabled:
        message = "this server runs each reply in its own container, without files."
        raise ApiError(400, f"'{param}': {message}", param=param, code="unsupported_parameter")
    is_auto = isinstance(choice, AutoContainer)
    listed = choice.file_ids or () if isinstance(choice, AutoContainer) else ()
    ids = [FilePart(f"{param}.file_ids[{index}]", file_id) for index, file_id in enumerate(listed)]
    files = await resolve(containers.files, [*ids, *parts], owner)
    wish = ContainerWish(
        container_id=choice if isinstance(choice, str) else None,
        files=files,
        memory_mb=choice.memory_mb if isinstance(choice, AutoContainer) else None,
        previous=previous if is_auto or choice is None else None,
        fresh_if_expired=on_expired == "fresh",
        param=param,
        figures=figures or "png",
    )
    return await containers.use(owner, wish)
