"""The container of a request, from its fields and the files of its messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends

from service.api.errors import ApiError
from service.api.files.containers import Containers, ContainerUse, ContainerWish
from service.api.files.inputs import FilePart, resolve
from service.api.state import containers_of
from service.api.tools.definitions import AutoContainer, Figures, OnExpired

CurrentContainers = Annotated[Containers, Depends(containers_of)]


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
