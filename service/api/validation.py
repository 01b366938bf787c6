"""Reading of request bodies: liberal by default, strict where it matters or where the operator asks for it.

Unknown fields and known fields of no effect are accepted, ignored and reported (response header
``x-ih-grpo-ignored``, a metric, a debug line of the log). A name within two edits of a known field is an
error, and so is a value whose neglect would change the answer's meaning, its cost or its safety. Null means
unset.

Content of messages: a string, or parts of text that are joined with nothing between them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol, Self, runtime_checkable

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

UNKNOWN: Final = "unknown"
"""Label of the metric for fields that no model declares: a client's own words must not become labels."""
_MAX_EDITS: Final = 2
_HEADER_CHARS: Final = 1000
_PATH_CHARS: Final = 120


@dataclass(slots=True)
class Reading:
    """One request's reading: how strict it is, and what it ignored."""

    strict: bool = False
    paths: list[str] = field(default_factory=list)
    """The first ignored fields, as ``messages[0].name``."""
    labels: dict[str, int] = field(default_factory=dict)
    """How many were ignored, by the declared field's name or `UNKNOWN`."""
    lookups: int = 256
    """Names that may still be compared with known ones: a body of a million names must not take minutes."""

    def ignore(self, path: str, label: str) -> None:
        """Note that the field at ``path`` has no effect."""
        self.labels[label] = self.labels.get(label, 0) + 1
        if len(self.paths) < _HEADER_CHARS // 2:
            self.paths.append(path)

    def header(self) -> str:
        """The paths as one ASCII line of bounded length."""
        line, count = "", sum(self.labels.values())
        for number, path in enumerate(self.paths):
            name = _printable(path)
            if len(line) + len(name) > _HEADER_CHARS:
                return f"{line}, and {count - number} more"
            line += f", {name}" if line else name
        return line if count == len(self.paths) else f"{line}, and {count - len(self.paths)} more"


current: ContextVar[Reading | None] = ContextVar("current_reading", default=None)
"""The reading of the request that this task serves; None outside of one (liberal, and nothing is noted)."""


@contextmanager
def unreported() -> Iterator[None]:
    """Meanwhile requests are read liberally and nothing is noted: for those that the server makes itself."""
    token = current.set(None)
    try:
        yield
    finally:
        current.reset(token)


def report(name: str) -> None:
    """Note a field of the request at hand that turned out to have no effect."""
    if (reading := current.get()) is not None:
        reading.ignore(name, name)


def is_strict() -> bool:
    """Whether the operator wants every field that has no effect rejected."""
    reading = current.get()
    return reading is not None and reading.strict


@runtime_checkable
class Lenient(Protocol):
    """Metadata of a field that passes over something in its value."""

    def ignored_in(self, raw: object) -> Iterator[str]:
        """Paths below the field of what is passed over in ``raw``; an empty one means the field itself."""
        ...


class RequestModel(BaseModel):
    """Part of a request. Unknown fields are ignored, null counts as unset, numbers are finite."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
    unknown_allowed: ClassVar[bool] = True

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
    """A part whose unknown fields are always rejected: one that is lost would cost or expose something."""

    model_config = ConfigDict(extra="forbid")
    unknown_allowed: ClassVar[bool] = False


class RequestBody(RequestModel):
    """A whole request. Reports what was ignored in it to the current `Reading`."""

    @model_validator(mode="wrap")
    @classmethod
    def _report_ignored(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        _check_unicode(data)
        body = handler(data)
        reading = current.get()
        if reading is not None:
            for path, label in _ignored(data, body, ""):
                reading.ignore(path, label)
            for name in body.without_effect():
                reading.ignore(name, name)
        return body

    def without_effect(self) -> Iterator[str]:
        """Names of fields whose values have no effect beside the others."""
        yield from ()


class Skipped(RequestModel):
    """An element of a list that is accepted and left out."""


class Ignored:
    """Metadata of a known field that has no effect here. In strict mode only neutral values pass."""

    def __init__(self, *neutral: object) -> None:
        self._neutral = (None, *neutral)

    def ignored_in(self, raw: object) -> Iterator[str]:
        """The field itself, unless its value asks for nothing."""
        if raw not in self._neutral:
            yield ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: object) -> object:
        if is_strict() and value not in self._neutral:
            raise unsupported("this server does not support it")
        return value


def unsupported(message: str, at: str = "") -> PydanticCustomError:
    """The error for a value that this server can't honour.

    Args:
        message: what is wrong.
        at: path of the culprit below the field that is validated, as ``[1].text`` or ``.arguments``.
    """
    return PydanticCustomError("unsupported_parameter", "{message}", {"message": message, "at": at})


def invalid(message: str, at: str = "") -> PydanticCustomError:
    """The error for a value that makes no sense; arguments as for `unsupported`."""
    return PydanticCustomError("invalid_value", "{message}", {"message": message, "at": at})


def unknown(name: str, meant: str | None = None) -> PydanticCustomError:
    """The error for an unknown field, with the known one that was probably ``meant``."""
    hint = "" if meant is None else f" Did you mean '{meant}'?"
    return PydanticCustomError("unknown_parameter", "{hint}", {"hint": hint.strip(), "at": f".{name}"})


def only(*neutral: object) -> AfterValidator:
    """Reject a known field unless its value asks for nothing: ignoring it would change the answer."""

    def check(value: object) -> object:
        if value is not None and value not in neutral:
            raise unsupported("this server does not support it")
        return None

    return AfterValidator(check)


def in_union(known: frozenset[str]) -> Callable[[object], str | None]:
    """A discriminator by ``type``; elements of other types are left out (tag ``<skipped>``)."""

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
    """Fields by the names that clients use."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _check_unknown(model: type[RequestModel], name: str, given: dict[str, object]) -> None:
    meant = None if issubclass(model, Skipped) else _meant(model, str(name)[:64])
    if meant is not None and meant in given:
        meant = None  # `models` beside `model` is another client's field, not a slip
    if meant is not None or not model.unknown_allowed or (is_strict() and not issubclass(model, Skipped)):
        raise unknown(str(name), meant)


def _meant(model: type[BaseModel], name: str) -> str | None:
    """The known field that ``name`` nearly is."""
    if (reading := current.get()) is not None:
        if reading.lookups <= 0:
            return None
        reading.lookups -= 1
    return _nearest(model, name)


@functools.lru_cache(maxsize=1024)
def _nearest(model: type[BaseModel], name: str) -> str | None:
    near = [
        (edits, known) for known in _known(model) if (edits := _edits(name, known)) <= _limit(name, known)
    ]
    return min(near)[1] if near else None


def _limit(name: str, known: str) -> int:
    """Edits that make ``name`` a slip: short names are all near each other (`date` is no slip for `name`)."""
    shorter = min(len(name), len(known))
    return 0 if shorter < 3 else 1 if shorter < 6 else _MAX_EDITS


def _edits(one: str, other: str) -> int:
    """Optimal string alignment distance: insertions, deletions, substitutions, swaps of neighbours.

    Names whose lengths differ by more than `_MAX_EDITS` are `_MAX_EDITS` + 1 apart, whatever they hold.
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
    """Raise for a lone surrogate in any string: it can't be encoded, so neither be tokenized nor stored."""
    todo: list[tuple[object, str]] = [(data, "")]
    while todo:
        value, path = todo.pop()
        if isinstance(value, str):
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise invalid(
                        "the text holds a lone surrogate, which is not valid Unicode", path
                    ) from None
        elif isinstance(value, dict):
            for name, part in value.items():
                todo += [(part, f"{path}.{name}"), (name, path)]
        elif isinstance(value, list):
            todo += [(part, f"{path}[{index}]") for index, part in enumerate(value)]


def _ignored(raw: object, value: object, path: str) -> Iterator[tuple[str, str]]:
    """Paths and labels of what ``value``, made of ``raw``, does not hold."""
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
    """``path`` in printable ASCII without the separators of a header."""
    safe = path[:_PATH_CHARS].encode("unicode_escape").decode("ascii")
    return "".join(char if " " < char <= "~" and char not in ',;"' else "?" for char in safe)


_TEXT: Final = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Field that holds the text, by the type of the part."""
_LEFT_OUT: Final = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text"})
"""Parts of other APIs' replies that are sent back: what a model thought is no part of what it said."""
_OWN_FIELDS: Final = frozenset({"type", "text", "refusal", "annotations", "logprobs"})
"""Fields of a part that this server writes, or that hold the text."""


class TextPart(RequestModel):
    """A piece of content. Pieces are joined with nothing between them."""

    type: Literal["text"]
    text: str


class ResponseTextPart(RequestModel):
    """The same in the Responses API."""

    type: Literal["input_text", "output_text"]
    text: str


class _Parts(Lenient):
    """Reports fields of parts that change nothing, as ``cache_control``, and parts that are left out."""

    def ignored_in(self, raw: object) -> Iterator[str]:
        for index, part in enumerate(raw if isinstance(raw, list) else ()):
            if not isinstance(part, dict):
                continue
            if str(part.get("type")) in _LEFT_OUT:
                yield f"[{index}]"
                continue
            for name, value in part.items():
                if name not in _OWN_FIELDS and value is not None:
                    yield f"[{index}].{name}"


def join_parts(value: object) -> object:
    """Text parts as one string; anything that is not a list is left to the field's type."""
    if not isinstance(value, list):
        return value
    return "".join(_text(part, f"[{index}]") for index, part in enumerate(value))


def _text(part: object, at: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise unsupported("content is a string, or parts of type 'text' with their text", at)
    kind = part.get("type", "text")
    if not isinstance(kind, str):
        raise invalid("the type of a part is a string", f"{at}.type")
    if kind in _LEFT_OUT and not is_strict():
        return ""
    if (name := _TEXT.get(kind)) is None:
        raise unsupported(f"parts of type {kind[:40]!r} can't be read: this model reads text only", at)
    if not isinstance(text := part.get(name), str):
        raise invalid(f"a part of type {name!r} needs its '{name}'", f"{at}.{name}")
    if is_strict() and (extra := next((key for key in part if key not in _OWN_FIELDS), None)):
        raise unsupported("this server does not know it", f"{at}.{extra}")
    return text


Content = Annotated[str, BeforeValidator(join_parts, json_schema_input_type=str | list[TextPart]), _Parts()]
OptionalContent = Annotated[
    str | None, BeforeValidator(join_parts, json_schema_input_type=str | list[TextPart] | None), _Parts()
]
ResponseContent = Annotated[
    str, BeforeValidator(join_parts, json_schema_input_type=str | list[ResponseTextPart]), _Parts()
]
