"""Multipart forms that are read while they arrive, so that a file is neither in memory nor spooled."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.api.errors import ApiError

_MAX_FIELDS: Final = 16
_MAX_FIELD_BYTES: Final = 8 << 10
_MAX_FILENAME_CHARS: Final = 512

SaveFile = Callable[[str, AsyncIterator[bytes]], Awaitable[None]]
"""Saves a file, given its name and its content."""


@dataclass(slots=True)
class _Part:
    """Header of a part of the form."""

    name: str
    filename: str | None


async def read_form(request: Request, save: SaveFile, *, file_field: str = "file") -> dict[str, str]:
    """Read the form of ``request``, pass its file to ``save`` while it arrives, and return the other fields.

    Args:
        request: its body was not read yet.
        save: called for the file. An exception in it ends the request.
        file_field: name of the part with the file.

    Raises:
        ApiError: 400 if the body is not a valid form, or has more than one file or too many fields.
    """
    media_type, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary:
        raise _invalid("The body must be a form: send it as multipart/form-data with the part 'file'.")
    fields: dict[str, str] = {}
    count, has_file = 0, False
    events = _events(request, boundary)
    try:
        async for event in events:
            if not isinstance(event, _Part):
                continue  # the rest of a part that was read already
            if event.filename is not None or event.name == file_field:
                if event.name != file_field or has_file:
                    raise _invalid(f"The form must contain exactly one file, in the part '{file_field}'.")
                has_file = True
                await save(event.filename or "upload", _content(events))
            else:
                count += 1
                if count > _MAX_FIELDS:
                    raise _invalid(f"The form has more than {_MAX_FIELDS} fields.")
                fields[event.name] = await _value(event.name, events)
    finally:
        await events.aclose()
    return fields


async def _content(events: AsyncIterator[_Part | bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the content of the part that has just begun. An empty chunk ends it."""
    async for event in events:
        assert isinstance(event, bytes)  # noqa: S101  (every part ends with an empty chunk)
        if not event:
            return
        yield event


async def _value(name: str, events: AsyncIterator[_Part | bytes]) -> str:
    value = b""
    async for chunk in _content(events):
        value += chunk
        if len(value) > _MAX_FIELD_BYTES:
            raise _invalid(f"'{name[:80]}' is too long.")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _invalid(f"'{name[:80]}' is not UTF-8.") from None


async def _events(request: Request, boundary: bytes) -> AsyncGenerator[_Part | bytes, None]:
    """Yield the header of each part, then its content in chunks, then an empty chunk."""
    parsed = _Callbacks()
    try:
        parser = MultipartParser(boundary, parsed.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
            events, parsed.events = parsed.events, []
            for event in events:
                yield event
        parser.finalize()
    except FormParserError as error:
        raise _invalid(f"The body is not a valid form: {str(error)[:200]}.") from None
    if not parsed.has_ended:
        raise _invalid("The form is cut off.")


class _Callbacks:
    """Collects what the parser finds in one chunk of the body."""

    def __init__(self) -> None:
        self.events: list[_Part | bytes] = []
        self.has_ended = False
        self._headers: dict[bytes, bytes] = {}
        self._name = b""
        self._value = b""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add_name(data[start:end]),
            "on_header_value": lambda data, start, end: self._add_value(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": lambda: self.events.append(b""),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._headers = {}

    def _add_name(self, data: bytes) -> None:
        self._name += data

    def _add_value(self, data: bytes) -> None:
        self._value += data

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _end_headers(self) -> None:
        header = self._headers.get(b"content-disposition", b"").decode("utf-8", "replace")
        _, options = parse_options_header(_escaped(header))
        name, filename = options.get(b"name"), options.get(b"filename")
        if name is None:
            raise _invalid("A part of the form has no name.")
        self.events.append(_Part(_text(name), None if filename is None else _text(filename)))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if end > start:
            self.events.append(data[start:end])

    def _end(self) -> None:
        self.has_ended = True


def _escaped(header: str) -> str:
    """Return ``header`` as Latin-1 text, the form that the parser accepts."""
    return header.encode("utf-8").decode("latin-1")


def _text(value: bytes) -> str:
    # Browsers and curl escape quotes and line breaks in names this way.
    text = value.decode("utf-8", "replace").replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
    return text[:_MAX_FILENAME_CHARS]


def _invalid(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_form")
