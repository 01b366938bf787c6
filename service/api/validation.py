"""Validation of request bodies: lenient by default, strict if it matters or if the operator requires it.

Unknown fields, and known fields without effect, are ignored and reported in the response header
``x-ih-grpo-ignored``, a metric and a debug line of the log. A name within two edits of a known field is an
error. So is a value that can't be ignored without changing the answer's meaning, cost or safety, and a field
of another API with such a value. Null means unset.

Message content is a string, or text parts that are joined without a separator.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol, Self, runtime_checkable

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

UNKNOWN: Final = "unknown"
"""Metric label of undeclared fields. Arbitrary names of clients must not become labels."""
_MAX_EDITS: Final = 2
_HEADER_CHARS: Final = 1000
_PATH_CHARS: Final = 120


@dataclass(slots=True)
class ValidationReport:
    """Validation of one request: its strictness, and the fields that it ignored."""

    strict: bool = False
    paths: list[str] = field(default_factory=list)
    """Paths of the first ignored fields, such as ``messages[0].name``."""
    labels: dict[str, int] = field(default_factory=dict)
    """Number of ignored fields, by the name of the declared field or `UNKNOWN`."""
    lookups: int = 256
    """Remaining comparisons of unknown names with known ones, which bounds the time for a huge body."""

    def ignore(self, path: str, label: str) -> None:
        """Record that the field at ``path`` has no effect."""
        self.labels[label] = self.labels.get(label, 0) + 1
        if len(self.paths) < _HEADER_CHARS // 2:
            self.paths.append(path)

    def header(self) -> str:
        """Return the paths as one ASCII line of bounded length."""
        line, count = "", sum(self.labels.values())
        for number, path in enumerate(self.paths):
            name = _printable(path)
            if len(line) + len(name) > _HEADER_CHARS:
                return f"{line}, and {count - number} more"
            line += f", {name}" if line else name
        return line if count == len(self.paths) else f"{line}, and {count - len(self.paths)} more"


current: ContextVar[ValidationReport | None] = ContextVar("current_report", default=None)
"""Report of the current task's request; None outside of requests: lenient, and nothing is recorded."""


@contextmanager
def unreported() -> Iterator[None]:
    """Validate leniently without a report inside the context, for requests that the server creates itself."""
    token = current.set(None)
    try:
        yield
    finally:
        current.reset(token)


def report_ignored(path: str, *, label: str | None = None) -> None:
    """Record a field of the current request that has no effect; ``label`` is its name in the metric."""
    if (report := current.get()) is not None:
        report.ignore(path, label or path)


def is_strict() -> bool:
    """Return whether fields without effect are rejected, a setting of the operator."""
    report = current.get()
    return report is not None and report.strict


@runtime_checkable
class Lenient(Protocol):
    """Metadata of a field that ignores parts of its value."""

    def ignored_in(self, raw: object) -> Iterator[str]:
        """Yield the paths of ignored parts of ``raw``; an empty path means the field itself."""
        ...


class SiblingField:
    """A field of another API, rejected because ignoring it would change the meaning or cost of the answer.

    Args:
        instead: the field or route to use, as the end of a sentence; empty if there is none.
        neutral: values that change nothing, beside null and empty ones. They are ignored.
    """

    def __init__(self, instead: str, *neutral: object) -> None:
        self._instead = instead
        self._neutral = (None, "", [], {}, *neutral)

    def check(self, name: str, value: object) -> None:
        """Raise unless ``value`` is neutral."""
        if not is_neutral(value, self._neutral):
            reason = "this API has no such field" if self._instead else "this server does not support it"
            raise unsupported(f"{reason}; use {self._instead}" if self._instead else reason, f".{name}")


def is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    """Return whether ``value`` equals one of ``neutral``. Booleans equal no numbers."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral)


class RequestModel(BaseModel):
    """Base of request models. Unknown fields are ignored, null counts as unset, numbers are finite."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
    unknown_allowed: ClassVar[bool] = True
    sibling_fields: ClassVar[Mapping[str, SiblingField]] = MappingProxyType({})
    """Fields of other APIs that are rejected, by name."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        known = _known(cls)
        kept = {}
        for name, value in data.items():
            declared = known.get(name)
            if declared is None:
                _check_unknown(cls, name, data)
            elif value is not None or declared.is_required():
                kept[name] = value
        return kept


class Strict(RequestModel):
    """A model that always rejects unknown fields, because ignoring one could cost or expose something."""

    model_config = ConfigDict(extra="forbid")
    unknown_allowed: ClassVar[bool] = False


class RequestBody(RequestModel):
    """A whole request. Ignored fields are added to the current `ValidationReport`."""

    @model_validator(mode="wrap")
    @classmethod
    def _report_ignored(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        _check_unicode(data)
        body = handler(data)
        report = current.get()
        if report is not None:
            for path, label in _ignored(data, body, ""):
                report.ignore(path, label)
            for name in body.without_effect():
                report.ignore(name, name)
        return body

    def without_effect(self) -> Iterator[str]:
        """Yield the names of fields that have no effect in combination with others."""
        yield from ()


def _as_label(value: object) -> object:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


Label = Annotated[str, BeforeValidator(_as_label, json_schema_input_type=object)]
"""Text that only labels a request, such as the user. Some front ends send an object; it becomes JSON text."""


class Skipped(RequestModel):
    """An element of a list that is accepted and ignored."""


class Ignored:
    """Metadata of a known field without effect. In strict mode only neutral values are accepted."""

    def __init__(self, *neutral: object) -> None:
        self._neutral = (None, *neutral)

    def ignored_in(self, raw: object) -> Iterator[str]:
        """Yield the field itself unless its value is neutral."""
        if raw not in self._neutral:
            yield ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: object) -> object:
        if is_strict() and value not in self._neutral:
            raise unsupported("this server does not support it")
        return value


def unsupported(message: str, at: str = "") -> PydanticCustomError:
    """Return the error for an unsupported value.

    Args:
        message: description of the error.
        at: path of the value below the validated field, such as ``[1].text`` or ``.arguments``.
    """
    return PydanticCustomError("unsupported_parameter", "{message}", {"message": message, "at": at})


def invalid(message: str, at: str = "") -> PydanticCustomError:
    """Return the error for an invalid value. Arguments as in `unsupported`."""
    return PydanticCustomError("invalid_value", "{message}", {"message": message, "at": at})


def unknown(name: str, meant: str | None = None) -> PydanticCustomError:
    """Return the error for an unknown field; ``meant`` is the known field that was probably intended."""
    hint = "" if not meant else f" Did you mean '{meant}'?"
    return PydanticCustomError("unknown_parameter", "{hint}", {"hint": hint.strip(), "at": f".{name}"})


@dataclass(frozen=True, slots=True)
class Rejected(AfterValidator):
    """Metadata of a known field that is rejected unless its value is neutral."""

    neutral: tuple[object, ...] = ()


def only(*neutral: object) -> Rejected:
    """Reject a known field unless its value is neutral, because ignoring it would change the answer."""

    def check(value: object) -> object:
        if value is not None and value not in neutral:
            raise unsupported("this server does not support it")
        return None

    return Rejected(check, neutral)


def in_union(known: frozenset[str]) -> Callable[[object], str | None]:
    """Return a discriminator by ``type``. Elements of other types get the tag ``<skipped>``."""

    def tag(value: object) -> str | None:
        kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        if kind is None and isinstance(value, dict) and "function" in value:
            kind = "function"
        if isinstance(kind, str) and kind in known:
            return f"<{kind}>"
        is_skippable = isinstance(value, Skipped) or (isinstance(value, dict) and not is_strict())
        return "<skipped>" if is_skippable else None

    return tag


@functools.cache
def _known(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of ``model`` by their names in requests."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _check_unknown(model: type[RequestModel], name: str, given: dict[str, object]) -> None:
    sibling = model.sibling_fields.get(name)
    if sibling is not None:
        sibling.check(name, given[name])
    has_meaning = sibling is not None or issubclass(model, Skipped)
    meant = None if has_meaning else _meant(model, str(name)[:64])
    if meant is not None and meant in given:
        meant = None  # `models` beside `model` is a field of another API, not a typo
    if meant is not None or not model.unknown_allowed or (is_strict() and not issubclass(model, Skipped)):
        raise unknown(str(name), meant)


def _meant(model: type[BaseModel], name: str) -> str | None:
    """Return the known field that ``name`` is a typo of, or None; empty if that field is rejected too."""
    if (report := current.get()) is not None:
        if report.lookups <= 0:
            return None
        report.lookups -= 1
    return _nearest(model, name)


@functools.lru_cache(maxsize=1024)
def _nearest(model: type[BaseModel], name: str) -> str | None:
    near = [
        (any(isinstance(mark, Rejected) for mark in info.metadata), edits, known)
        for known, info in _known(model).items()
        if (edits := _edits(name, known)) <= _limit(name, known)
    ]
    if not near:
        return None
    is_rejected, _, known = min(near)
    return "" if is_rejected else known


def _limit(name: str, known: str) -> int:
    """Return the maximum edits of a typo; fewer for short names, as `date` is not a typo of `name`."""
    shorter = min(len(name), len(known))
    return 0 if shorter < 3 else 1 if shorter < 6 else _MAX_EDITS


def _edits(one: str, other: str) -> int:
    """Return the optimal string alignment distance: insertions, deletions, substitutions and transpositions.

    Names whose lengths differ by more than `_MAX_EDITS` have distance `_MAX_EDITS` + 1.
    """
    if abs(len(one) - len(other)) > _MAX_EDITS:
        return _MAX_EDITS + 1
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            cost = min(rows[-1][j] + 1, row[j - 1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def _check_unicode(data: object) -> None:
    """Raise for a lone surrogate in any string: it can't be encoded, tokenized or stored."""
    todo: list[tuple[object, str]] = [(data, "")]
    while todo:
        value, path = todo.pop()
        if isinstance(value, str):
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise invalid(
                        "the text contains a lone surrogate, which is not valid Unicode", path
                    ) from None
        elif isinstance(value, dict):
            for name, part in value.items():
                todo += [(part, f"{path}.{name}"), (name, path)]
        elif isinstance(value, list):
            todo += [(part, f"{path}[{index}]") for index, part in enumerate(value)]


def _ignored(raw: object, value: object, path: str) -> Iterator[tuple[str, str]]:
    """Yield paths and labels of the parts of ``raw`` that ``value`` ignores."""
    if isinstance(value, Skipped):
        yield path, "skipped"
    elif isinstance(value, BaseModel) and isinstance(raw, dict):
        fields = {info.alias or name: name for name, info in type(value).model_fields.items()}
        known = _known(type(value))
        for name, part in raw.items():
            below = f"{path}.{name}" if path else str(name)
            if name not in known:
                yield below, UNKNOWN
                continue
            for mark in known[name].metadata:
                if isinstance(mark, Lenient):
                    for suffix in mark.ignored_in(part):
                        yield f"{below}{suffix}", name
            yield from _ignored(part, getattr(value, fields[name]), below)
    elif isinstance(value, list) and isinstance(raw, list) and len(raw) == len(value):
        for index, (raw_part, part) in enumerate(zip(raw, value, strict=True)):
            yield from _ignored(raw_part, part, f"{path}[{index}]")


def _printable(path: str) -> str:
    """Return ``path`` in printable ASCII without the separators of a header."""
    safe = path[:_PATH_CHARS].encode("unicode_escape").decode("ascii")
    return "".join(char if " " < char <= "~" and char not in ',;"' else "?" for char in safe)


_TEXT: Final = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Name of the field with the text, by type of part."""
_IGNORED_TYPES: Final = frozenset(
    {"thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text"}
)
"""Types of thoughts in other APIs' replies, which are not part of the content."""
_OWN_FIELDS: Final = frozenset({"type", "text", "refusal", "annotations", "logprobs"})
"""Fields of a part that contain the text or that this server writes."""


class TextPart(RequestModel):
    """A part of content. Parts are joined without a separator."""

    type: Literal["text"]
    text: str


class ResponseTextPart(RequestModel):
    """A part of content in the Responses API."""

    type: Literal["input_text", "output_text"]
    text: str


FILE_TYPES: Final = frozenset({"file", "input_file"})
"""Types of parts with a file. `FileParts` takes them out of the content."""


class FileParts(RequestModel):
    """Base of messages whose content may have files for the code interpreter."""

    _file_parts: list[tuple[str, dict[str, Any]]] = PrivateAttr(default_factory=list)

    @model_validator(mode="wrap")
    @classmethod
    def _take_files(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        content = data.get("content") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(content, list) or data.get("role") != "user":
            return handler(data)
        found: list[tuple[str, dict[str, Any]]] = []
        kept: list[object] = []
        for index, part in enumerate(content):
            is_file = isinstance(part, dict) and part.get("type") in FILE_TYPES
            if is_file:
                found.append((f"content[{index}]", part))
            kept.append(
                {"type": "text", "text": ""} if is_file else part
            )  # keeps the positions of the others
        message = handler({**data, "content": kept})
        message._file_parts = found
        return message

    def with_files(self, parts: list[dict[str, Any]]) -> Self:
        """Return a copy with other file parts."""
        copied = self.model_copy()
        copied._file_parts = [("content", part) for part in parts]
        return copied

    @property
    def file_parts(self) -> list[tuple[str, dict[str, Any]]]:
        """Path below the message and fields of each part with a file."""
        return self._file_parts


class _Parts(Lenient):
    """Reports ignored parts, and fields of parts without effect such as ``cache_control``."""

    def ignored_in(self, raw: object) -> Iterator[str]:
        for index, part in enumerate(raw if isinstance(raw, list) else ()):
            if not isinstance(part, dict):
                continue
            if part.get("type") in FILE_TYPES:
                continue
            if str(part.get("type")) in _IGNORED_TYPES:
                yield f"[{index}]"
                continue
            for name, value in part.items():
                if name not in _OWN_FIELDS and value is not None:
                    yield f"[{index}].{name}"


def join_parts(value: object) -> object:
    """Join text parts. Values other than lists are left to the field's type."""
    if not isinstance(value, list):
        return value
    return "".join(_text(part, f"[{index}]") for index, part in enumerate(value))


def _text(part: object, at: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise unsupported("content must be a string, or parts of type 'text' with their text", at)
    kind = part.get("type", "text")
    if not isinstance(kind, str):
        raise invalid("the type of a part must be a string", f"{at}.type")
    if kind in _IGNORED_TYPES and not is_strict():
        return ""
    if (name := _TEXT.get(kind)) is None:
        raise unsupported(f"parts of type {kind[:40]!r} are not supported: this model reads text only", at)
    if not isinstance(text := part.get(name), str):
        raise invalid(f"a part of type {name!r} needs its '{name}'", f"{at}.{name}")
    if is_strict() and (extra := next((key for key in part if key not in _OWN_FIELDS), None)):
        raise unsupported("unknown field", f"{at}.{extra}")
    return text


Content = Annotated[str, BeforeValidator(join_parts, json_schema_input_type=str | list[TextPart]), _Parts()]
OptionalContent = Annotated[
    str | None, BeforeValidator(join_parts, json_schema_input_type=str | list[TextPart] | None), _Parts()
]
ResponseContent = Annotated[
    str, BeforeValidator(join_parts, json_schema_input_type=str | list[ResponseTextPart]), _Parts()
]
