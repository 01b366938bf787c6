"""Function calls in the Hermes format, which Qwen3's template teaches, read as they are written.

``<tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>``, once or several times, after free text.

Find where a JSON object ends while it is still being written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NoReturn

from service.episode.stop_strings import held_back


class JsonSpan:
    """Counts brackets outside strings. It tells only the extent: whether it is JSON, `loads` says."""

    def __init__(self) -> None:
        self.closed = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def take(self, text: str) -> int:
        """How many characters of ``text`` belong to the object; ``closed`` is true once the last one came."""
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
    """``text`` as JSON of RFC 8259: no NaN, no infinity, no nesting that overflows the stack.

    Raises:
        ValueError: it is none.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"

_HEAD: Final = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_TAIL: Final = re.compile(r"\s*\}\s*" + CLOSE)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text outside every call."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """The model calls function ``name``; calls are counted from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of the arguments, as the model wrote them."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The arguments are whole, and were checked."""

    index: int


@dataclass(frozen=True, slots=True)
class CallFailed:
    """The call that was begun last can't be made: its text and all that comes after follow as `TextDelta`."""

    index: int


HermesEvent = TextDelta | ToolCallStart | ArgumentsDelta | ToolCallEnd | CallFailed


class CallError(Exception):
    """The model wrote a call that can't be made. ``written`` is what it wrote."""

    def __init__(self, message: str, written: str) -> None:
        super().__init__(message)
        self.written = written


class _State(Enum):
    TEXT = auto()
    HEAD = auto()
    ARGUMENTS = auto()
    TAIL = auto()
    PLAIN = auto()  # a call could not be made: the rest is text


class HermesParser:
    """Incremental: the same text in any cut gives the same calls, arguments and text.

    Arguments are passed on as they come. Where ``arguments`` stands before ``name`` they come at the end.
    White space before and between calls is dropped.

    Args:
        check: given name and arguments of a finished call, says what is wrong with them, or None. With
            arguments None it is asked about the name alone.
        strict: raise for a call that can't be made or does not fit its schema. Otherwise one that can't be
            read is text, and one that does not fit is the client's to judge.
    """

    def __init__(
        self, check: Callable[[str, dict[str, object] | None], str | None], *, strict: bool = True
    ) -> None:
        self.calls = 0
        self._check = check
        self._strict = strict
        self._gap = ""
        """White space before the call that is read."""
        self._begun = ""
        """What was taken of the call before its arguments."""
        self._state = _State.TEXT
        self._held = ""
        self._span = JsonSpan()
        self._name = ""
        self._arguments: list[str] = []

    def feed(self, text: str) -> list[HermesEvent]:
        """Take more text.

        Raises:
            CallError: the model's call can't be made, and the parser is strict; nothing more may be fed.
        """
        self._held += text
        events: list[HermesEvent] = []
        steps = {
            _State.TEXT: self._text,
            _State.HEAD: self._head,
            _State.ARGUMENTS: self._write,
            _State.TAIL: self._tail,
            _State.PLAIN: self._plain,
        }
        try:
            while steps[self._state](events):
                pass
        except CallError:
            if self._strict:
                raise
            self._give_up(events)
        return events

    def end(self, *, cut_off: bool) -> list[HermesEvent]:
        """The reply is over; ``cut_off`` where a limit ended it, so that a call may be incomplete.

        Raises:
            CallError: as `feed`.
        """
        events: list[HermesEvent] = []
        try:
            self._end(events, cut_off=cut_off)
        except CallError:
            if self._strict:
                raise
            self._give_up(events)
        self._held = ""
        return events

    def _end(self, events: list[HermesEvent], *, cut_off: bool) -> None:
        held = self._held
        if self._state is _State.TEXT:
            if held.strip() or not self.calls:
                events.append(TextDelta(held))
        elif self._state is _State.TAIL and (not self._strict or held.lstrip()[:1] in ("", "}")):
            events.append(ToolCallEnd(self.calls - 1))
        elif self._state is _State.HEAD and not cut_off:
            self._whole(held, events)
        elif self._state is _State.ARGUMENTS and not cut_off:
            raise self._error("the call ends too early", "".join(self._arguments) + held)

    def _give_up(self, events: list[HermesEvent]) -> None:
        """The call that is read can't be made: it and all that follows is text."""
        written = f"{self._gap}{OPEN}{self._begun}{''.join(self._arguments)}{self._held}"
        if self._state is _State.ARGUMENTS:
            self.calls -= 1
            events.append(CallFailed(self.calls))
        events.append(TextDelta(written))
        self._state, self._held = _State.PLAIN, ""

    def _plain(self, events: list[HermesEvent]) -> bool:
        if self._held:
            events.append(TextDelta(self._held))
            self._held = ""
        return False

    def _text(self, events: list[HermesEvent]) -> bool:
        said, tag, after = self._held.partition(OPEN)
        if tag:
            # Text between two calls counts as said; white space there does not.
            if said.strip():
                events.append(TextDelta(said.rstrip()))
            self._gap, self._begun, self._arguments = said[len(said.rstrip()) :], "", []
            self._state, self._held = _State.HEAD, after
            return True
        sure = said[: len(said) - held_back(said, [OPEN])].rstrip()
        if sure:
            events.append(TextDelta(sure))
            self._held = said[len(sure) :]
        return False

    def _head(self, events: list[HermesEvent]) -> bool:
        if found := _HEAD.match(self._held):
            self._begin(str(self._loads(found[1])), events)
            self._begun = found[0]
            self._state, self._held, self._span = _State.ARGUMENTS, self._held[found.end() :], JsonSpan()
            return True
        whole, tag, after = self._held.partition(CLOSE)
        if not tag:
            return False
        self._whole(whole, events)
        self._state, self._held = _State.TEXT, after
        return True

    def _write(self, events: list[HermesEvent]) -> bool:
        taken = self._span.take(self._held)
        piece, self._held = self._held[:taken], self._held[taken:]
        if piece:
            self._arguments.append(piece)
            events.append(ArgumentsDelta(self.calls - 1, piece))
        if not self._span.closed:
            return False
        self._checked("".join(self._arguments))
        self._state = _State.TAIL
        return True

    def _tail(self, events: list[HermesEvent]) -> bool:
        found = _TAIL.match(self._held)
        if found is None:
            if CLOSE not in self._held:
                return False
            if self._strict:
                raise self._error("something follows the arguments", self._held)
            events.append(ToolCallEnd(self.calls - 1))
            self._state, self._held = _State.TEXT, self._held.partition(CLOSE)[2]
            return True
        events.append(ToolCallEnd(self.calls - 1))
        self._state, self._held = _State.TEXT, self._held[found.end() :]
        return True

    def _whole(self, written: str, events: list[HermesEvent]) -> None:
        """A call whose keys stand in another order, all at once."""
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

    def _begin(self, name: str, events: list[HermesEvent]) -> None:
        self._name, self._arguments = name, []
        self._check_name()
        events.append(ToolCallStart(self.calls, name))
        self.calls += 1

    def _check_name(self) -> None:
        if (complaint := self._check(self._name, None)) is not None:
            raise self._error(complaint, self._held)

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
        return CallError(f"The model's call of {where} can't be made: {message}.", written)
