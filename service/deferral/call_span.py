"""End of a function call in the Hermes format, found while the model writes it."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

CALL_OPEN: Final = "<tool_call>"
CALL_CLOSE: Final = "</tool_call>"

_SPACE: Final = frozenset(" \t\r\n")
_OUTSIDE_STRINGS: Final = (
    frozenset('{}[]:,"+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ') | _SPACE
)
"""Characters that JSON may contain outside of strings, and words such as NaN that only resemble JSON."""


class SpanState(Enum):
    """Result of adding a character to a `CallSpan`."""

    OPEN = auto()
    CLOSED = auto()  # the closing tag is complete
    BROKEN = auto()  # this character does not belong to the call


class _SpanPart(Enum):
    START = auto()
    OBJECT = auto()
    TAIL = auto()  # the object is complete
    TAG = auto()


class CallSpan:
    """The text after an opening tag: a JSON object, then ``</tool_call>``.

    The span ends at the first character that no such call contains. Text that only resembles a call is
    therefore left after a few characters, and code blocks that follow it are found. The object is not
    validated: brackets are counted outside of strings.

    Attributes:
        is_complete: the object or the closing tag is complete, so this is a call and not just text.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self._part = _SpanPart.START
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._tag = ""
        self._chars: list[str] = []

    @property
    def text(self) -> str:
        """Text of the span so far, without a part of a closing tag that turned out to be none."""
        return "".join(self._chars)[: -len(self._tag) or None]

    @property
    def dropped(self) -> int:
        """Number of characters of such a part, which do not belong to the span."""
        return len(self._tag)

    def add(self, char: str) -> SpanState:
        """Add the next character."""
        state = self._next(char)
        if state is not SpanState.BROKEN:
            self._chars.append(char)
        if state is SpanState.CLOSED:
            self._tag = ""
        return state

    def _next(self, char: str) -> SpanState:
        if self._part is _SpanPart.TAG:
            return self._add_to_tag(char)
        if self._in_string:
            return self._add_to_string(char)
        if char == "<" and self._part is not _SpanPart.START:
            self._part, self._tag = _SpanPart.TAG, char
            return SpanState.OPEN
        if self._part is _SpanPart.OBJECT:
            return self._add_to_object(char)
        if char in _SPACE or (char == "}" and self._part is _SpanPart.TAIL):
            return SpanState.OPEN
        if char == "{" and self._part is _SpanPart.START:
            self._part = _SpanPart.OBJECT
            return self._add_to_object(char)
        return SpanState.BROKEN

    def _add_to_object(self, char: str) -> SpanState:
        if char not in _OUTSIDE_STRINGS:
            return SpanState.BROKEN
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth <= 0:
                self._part, self.is_complete = _SpanPart.TAIL, True
        return SpanState.OPEN

    def _add_to_string(self, char: str) -> SpanState:
        if char < " ":  # a control character must be escaped
            return SpanState.BROKEN
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
        return SpanState.OPEN

    def _add_to_tag(self, char: str) -> SpanState:
        if not CALL_CLOSE.startswith(self._tag + char):
            return SpanState.BROKEN
        self._tag += char
        if self._tag != CALL_CLOSE:
            return SpanState.OPEN
        self.is_complete = True
        return SpanState.CLOSED
