"""Files that a request gives to code: parts of messages and ids of uploads, their names in the container, and
the lines of the prompt that list them."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.api.errors import ApiError
from service.api.files.route import find, stored
from service.common.json import Json
from service.sandbox.worker_program import INPUTS
from service.store.files import FileStore, StoredFile

INLINE_DAYS: Final = 2
"""Days that a file is kept that was sent inside a request."""
_MAX_NAME_CHARS: Final = 80
_DATA_URL: Final = re.compile(r"data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,", re.ASCII)
_UNSAFE: Final = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file in a message: an uploaded one, or its content in base64."""

    param: str
    """Path of the part in the request, or of the id itself."""
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None
    id_field: str = ""
    """Path of the id below ``param``."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file for the container, and its name there."""

    file: StoredFile
    name: str

    @property
    def path(self) -> str:
        return f"{INPUTS}/{self.name}"

    def as_stored(self) -> Json:
        return {"file_id": self.file.id, "name": self.name}


def file_part(part: dict[str, Any], param: str) -> FilePart:
    """Return the file of a part ``input_file`` (Responses) or ``file`` (chat).

    Raises:
        ApiError: 400 if the part has no usable file.
    """
    fields = part.get("file") if part.get("type") == "file" else part
    if not isinstance(fields, dict):
        raise _invalid(f"{param}.file", "it must be an object")
    values = {name: fields.get(name) for name in ("file_id", "file_data", "filename", "file_url")}
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            raise _invalid(f"{param}.{name}", "it must be a string")
    if values["file_url"]:
        message = "this server does not fetch URLs; upload the file, or send its 'file_data'"
        raise ApiError(
            400, f"'{param}.file_url': {message}.", param=f"{param}.file_url", code="unsupported_parameter"
        )
    if bool(values["file_id"]) == bool(values["file_data"]):
        raise _invalid(param, "a file needs either its 'file_id' or its 'file_data'")
    id_field = ".file.file_id" if part.get("type") == "file" else ".file_id"
    return FilePart(param, values["file_id"], values["file_data"], values["filename"], id_field)


async def resolve(files: FileStore, parts: Iterable[FilePart], owner: str) -> list[StoredFile]:
    """Return the files of ``parts``, after storing those that were sent inside the request.

    Raises:
        ApiError: 404 for an unknown file, 400 for invalid base64, 413 for a file above a limit.
    """
    found = []
    for part in parts:
        if part.file_id is not None:
            found.append(await find(files, part.file_id, owner, f"{part.param}{part.id_field}"))
        else:
            found.append(await _store_inline(files, part, owner))
    return found


async def _store_inline(files: FileStore, part: FilePart, owner: str) -> StoredFile:
    text = _DATA_URL.sub("", part.file_data or "", count=1)
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(
            f"{part.param}.file_data", "it is not base64, with or without 'data:...;base64,'"
        ) from None

    async def whole() -> AsyncIterator[bytes]:
        yield content

    return await stored(
        files,
        whole(),
        owner=owner,
        filename=part.filename or "file",
        purpose="user_data",
        expires_after_s=INLINE_DAYS * 86_400.0,
        listed=False,
    )


def named(files: Iterable[StoredFile], taken: Collection[str] = ()) -> list[InputFile]:
    """Return ``files`` without duplicates, each with a name that is safe and not in ``taken``."""
    used = {name.lower() for name in taken}
    found: dict[str, InputFile] = {}
    for file in files:
        if file.id in found:
            continue
        name = safe_name(file.filename)
        stem, dot, ending = name.rpartition(".") if "." in name else (name, "", "")
        number = 2
        while name.lower() in used or f"{name}.txt".lower() in used:
            name = f"{stem}-{number}{dot}{ending}"
            number += 1
        used |= {name.lower(), f"{name}.txt".lower()} if is_pdf(name) else {name.lower()}
        found[file.id] = InputFile(file, name)
    return list(found.values())


def safe_name(filename: str) -> str:
    """Return the last part of ``filename`` with letters, digits, dots, hyphens and underscores only."""
    last = unicodedata.normalize("NFC", filename.replace("\\", "/").rstrip("/").rpartition("/")[2])
    name = _UNSAFE.sub("_", last).lstrip("._-").rstrip("_")
    if len(name) > _MAX_NAME_CHARS:
        stem, dot, ending = name.rpartition(".")
        ending = ending[:10]
        name = f"{stem[: _MAX_NAME_CHARS - 1 - len(ending)]}{dot}{ending}" if dot else name[:_MAX_NAME_CHARS]
    return name.rstrip("_") or "file"


def is_pdf(name: str) -> bool:
    """Return whether the container also gets the text of the file, as ``NAME.txt``."""
    return name.lower().endswith(".pdf")


def prompt_note(inputs: Sequence[tuple[str, int]], *, restarted: bool) -> str:
    """Return the text that follows the last user message.

    Args:
        inputs: name and size of each file.
        restarted: earlier code ran in another container.
    """
    lines = []
    if restarted:
        lines.append("The Python session was restarted: earlier variables and files are gone.")
    if inputs:
        lines.append("Files that the code can read:")
    for name, size in inputs:
        text = f"; its text: {INPUTS}/{name}.txt" if is_pdf(name) else ""
        lines.append(f"- {INPUTS}/{name} ({_readable(size)}{text})")
    return "\n\n" + "\n".join(lines) if lines else ""


def _readable(size: int) -> str:
    number, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} {unit}" if unit == "bytes" or number >= 10 else f"{number:.1f} {unit}"


def _invalid(param: str, why: str) -> ApiError:
    return ApiError(400, f"'{param}': {why}.", param=param, code="invalid_value")
