"""Tool calls in the Hermes format, which Qwen's chat templates teach, parsed while they are written.

``<tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>``, once or several times, after free text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple, NoReturn

from service.deferral.call_span import CALL_CLOSE, CALL_OPEN
from service.episode.stop_strings import partial_stop_length

CheckCall = Callable[[str, dict[str, object] | None], str | None]
"""Return the error in a call's name and arguments, or None. With arguments None, check the name alone."""


class JsonSpan:
    """Find the end of a JSON object that is still being written, by counting brackets outside strings.

    The object is not validated; see `loads`.
    """

    def __init__(self) -> None:
        self.closed = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def take(self, text: str) -> int:
        """Return how many characters of ``text`` belong to the object. Sets ``closed`` at its last one."""
        for at, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.closed = True
                    return at + 1
        return len(text)


def loads(text: str) -> object:
    """Parse ``text`` as JSON of RFC 8259: no NaN, no infinity, no nesting that overflows the stack.

    Raises:
        ValueError: ``text`` is not valid JSON.
    """

    def reject(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(text, parse_constant=reject)
    except RecursionError:
        raise ValueError("nested too deeply") from None


_HEAD: Final = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_TAIL: Final = re.compile(r"\s*\}\s*" + CALL_CLOSE)


class TextDelta(NamedTuple):  # made for every token, and cheaper than a frozen dataclass
    """Text outside of calls."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """Beginning of a call of function ``name``. Calls are numbered from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """Next part of the arguments, as the model wrote them."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The arguments are complete and were checked."""

    index: int


@dataclass(frozen=True, slots=True)
class CallFailed:
    """The last call is invalid. Its text and all further text follow as `TextDelta`."""

    index: int


ToolParserEvent = TextDelta | ToolCallStart | ArgumentsDelta | ToolCallEnd | CallFailed


class CallError(Exception):
    """The model wrote an invalid call; ``written`` is its text."""

    def __init__(self, message: str, written: str) -> None:
        super().__init__(message)
        self.written = written


class _CallState(Enum):
    TEXT = auto()
    HEAD = auto()
    ARGUMENTS = auto()
    TAIL = auto()
    PLAIN = auto()  # a call was invalid: the rest is text


class ToolCallParser:
    """Incremental parser of tool calls. The result doesn't depend on how the text is split.

    Arguments are passed on while they are written, or at the end of a call that has ``arguments`` before
    ``name``. White space before and between calls is dropped.

    Args:
        check: validates each call.
        strict: raise for a call that is invalid or doesn't match its schema. Otherwise an unparsable call is
            text, and one that doesn't match its schema is passed on for the client to judge.
        marked: calls begin only at `open_call` and end at `close_call`, because the opening tag has another
            meaning too. Text after an invalid call may then contain calls again.
    """

    def __init__(self, check: CheckCall, *, strict: bool = True, marked: bool = False) -> None:
        self.calls = 0
        self._marked = marked
        self._check = check
        self._strict = strict
        self._gap = ""
        """White space before the current call."""
        self._begun = ""
        """Text of the current call before its arguments."""
        self._state = _CallState.TEXT
        self._buffer = ""
        self._span = JsonSpan()
        self._name = ""
        self._arguments: list[str] = []

    def feed(self, text: str) -> list[ToolParserEvent]:
        """Parse more text.

        Raises:
            CallError: a call is invalid and the parser is strict. Don't feed it any more.
        """
        self._buffer += text
        events: list[ToolParserEvent] = []
        steps = {
            _CallState.TEXT: self._text,
            _CallState.HEAD: self._head,
            _CallState.ARGUMENTS: self._write,
            _CallState.TAIL: self._tail,
            _CallState.PLAIN: self._plain,
        }
        try:
            while steps[self._state](events):
                pass
        except CallError:
            if self._strict:
                raise
            self._give_up(events)
        return events

    def open_call(self) -> list[ToolParserEvent]:
        """Begin a call after the opening tag, with which the text so far ends."""
        if not self._buffer.endswith(CALL_OPEN):
            return []
        return self._open_call(self._buffer.removesuffix(CALL_OPEN), "")

    def close_call(self) -> list[ToolParserEvent]:
        """End the current call, whose text is complete.

        Raises:
            CallError: as `feed`.
        """
        events: list[ToolParserEvent] = []
        try:
            if self._state is _CallState.HEAD:
                self._whole(self._buffer.removesuffix(CALL_CLOSE), events)
            elif self._state is _CallState.ARGUMENTS:
                raise self._error("the call ends too early", "".join(self._arguments) + self._buffer)
            elif self._state is _CallState.TAIL:
                events.append(ToolCallEnd(self.calls - 1))
        except CallError:
            if self._strict:
                raise
            self._give_up(events)
        if self._state is not _CallState.TEXT:
            self._state, self._buffer = _CallState.TEXT, ""
        return events

    def drop_tag(self) -> None:
        """Drop an opening tag at the end of the text that began no call."""
        self._buffer = self._buffer.removesuffix(CALL_OPEN)

    def end(self, *, cut_off: bool) -> list[ToolParserEvent]:
        """End the reply. With ``cut_off`` a limit ended it, so the last call may be incomplete.

        Raises:
            CallError: as `feed`.
        """
        events: list[ToolParserEvent] = []
        try:
            self._end(events, cut_off=cut_off)
        except CallError:
            if self._strict:
                raise
            self._give_up(events)
        self._buffer = ""
        return events

    def _end(self, events: list[ToolParserEvent], *, cut_off: bool) -> None:
        rest = self._buffer
        if self._state is _CallState.TEXT:
            if rest.strip() or not self.calls:
                events.append(TextDelta(rest))
        elif self._state is _CallState.TAIL and (not self._strict or rest.lstrip()[:1] in ("", "}")):
            events.append(ToolCallEnd(self.calls - 1))
        elif self._state is _CallState.HEAD and not cut_off:
            self._whole(rest, events)
        elif self._state is _CallState.ARGUMENTS and not cut_off:
            raise self._error("the call ends too early", "".join(self._arguments) + rest)

    def _give_up(self, events: list[ToolParserEvent]) -> None:
        """Turn the invalid call and all further text into text."""
        written = f"{self._gap}{CALL_OPEN}{self._begun}{''.join(self._arguments)}{self._buffer}"
        if self._state is _CallState.ARGUMENTS:
            self.calls -= 1
            events.append(CallFailed(self.calls))
        events.append(TextDelta(written))
        self._state, self._buffer = _CallState.PLAIN, ""

    def _plain(self, events: list[ToolParserEvent]) -> bool:
        if self._buffer:
            events.append(TextDelta(self._buffer))
            self._buffer = ""
        return False

    def _text(self, events: list[ToolParserEvent]) -> bool:
        text = self._buffer
        if not self._marked:
            text, tag, after = self._buffer.partition(CALL_OPEN)
            if tag:
                events += self._open_call(text, after)
                return True
        tag_chars = partial_stop_length(text, [CALL_OPEN])
        if self._marked and text.endswith(CALL_OPEN):
            tag_chars = len(CALL_OPEN)
        certain = text[: len(text) - tag_chars].rstrip()
        if certain:
            events.append(TextDelta(certain))
            self._buffer = text[len(certain) :]
        return False

    def _open_call(self, text: str, after: str) -> list[ToolParserEvent]:
        """Begin a call between ``text`` and ``after``."""
        self._gap, self._begun, self._arguments = text[len(text.rstrip()) :], "", []
        self._state, self._buffer = _CallState.HEAD, after
        # Text between two calls is kept, white space is not.
        return [TextDelta(text.rstrip())] if text.strip() else []

    def _head(self, events: list[ToolParserEvent]) -> bool:
        if found := _HEAD.match(self._buffer):
            self._begin(str(self._loads(found[1])), events)
            self._begun = found[0]
            self._state, self._buffer, self._span = (
                _CallState.ARGUMENTS,
                self._buffer[found.end() :],
                JsonSpan(),
            )
            return True
        whole, tag, after = self._buffer.partition(CALL_CLOSE)
        if not tag:
            return False
        self._whole(whole, events)
        self._state, self._buffer = _CallState.TEXT, after
        return True

    def _write(self, events: list[ToolParserEvent]) -> bool:
        taken = self._span.take(self._buffer)
        piece, self._buffer = self._buffer[:taken], self._buffer[taken:]
        if piece:
            self._arguments.append(piece)
            events.append(ArgumentsDelta(self.calls - 1, piece))
        if not self._span.closed:
            return False
        self._checked("".join(self._arguments))
        self._state = _CallState.TAIL
        return True

    def _tail(self, events: list[ToolParserEvent]) -> bool:
        found = _TAIL.match(self._buffer)
        if found is None:
            if CALL_CLOSE not in self._buffer:
                return False
            if self._strict:
                raise self._error("something follows the arguments", self._buffer)
            events.append(ToolCallEnd(self.calls - 1))
            self._state, self._buffer = _CallState.TEXT, self._buffer.partition(CALL_CLOSE)[2]
            return True
        events.append(ToolCallEnd(self.calls - 1))
        self._state, self._buffer = _CallState.TEXT, self._buffer[found.end() :]
        return True

    def _whole(self, written: str, events: list[ToolParserEvent]) -> None:
        """Parse a complete call with its keys in another order."""
        call = self._loads(written)
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise self._error("a call is an object with 'name' and 'arguments'", written)
        self._name = call["name"]
        arguments = call.get("arguments", {})
        if not self._strict and isinstance(arguments, str):
            arguments = self._loads(arguments or "{}")
        arguments = json.dumps(arguments, ensure_ascii=False)
        self._check_name()
        self._checked(arguments)
        self._begin(call["name"], events)
        events += [ArgumentsDelta(self.calls - 1, arguments), ToolCallEnd(self.calls - 1)]

    def _begin(self, name: str, events: list[ToolParserEvent]) -> None:
        self._name, self._arguments = name, []
        self._check_name()
        events.append(ToolCallStart(self.calls, name))
        self.calls += 1

    def _check_name(self) -> None:
        if (complaint := self._check(self._name, None)) is not None:
            raise self._error(complaint, self._buffer)

    def _checked(self, written: str) -> None:
        arguments = self._loads(written)
        if not isinstance(arguments, dict):
            raise self._error("the arguments are not a JSON object", written)
        if self._strict and (complaint := self._check(self._name, arguments)) is not None:
            raise self._error(complaint, written)

    def _loads(self, written: str) -> object:
        try:
            return loads(written)
        except ValueError as error:
            raise self._error(f"not JSON: {error}", written) from None

    def _error(self, message: str, written: str) -> CallError:
        where = f"function '{self._name}'" if self._name else "a function"
        return CallError(f"The model's call of {where} is invalid: {message}.", written)
