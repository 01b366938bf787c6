"""A route whose validation errors name fields as clients know them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute


class PlainNames(APIRoute):
    """Takes the tags of unions (``<message>``) out of the names of fields."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_with_plain_names(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                told = [{**item, "loc": _plain(item["loc"])} for item in error.errors()]
                raise RequestValidationError(told, body=error.body) from None

        return handle_with_plain_names


def _plain(where: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return tuple(part for part in where if not str(part).startswith("<"))
