"""Content of messages: a string, or parts of text that are joined with nothing between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator

from service.api.validation import Lenient, RequestModel, invalid, is_strict, unsupported

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
