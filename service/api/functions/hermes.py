"""Function calls in the Hermes format, which Qwen3's template teaches, read as they are written.

``<tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>``, once or several times, after free text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from service.api.functions.json_span import JsonSpan, loads
from service.stops import held_back

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"

_HEAD: Final = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_TAIL: Final = re.compile(r"\s*\}\s*" + CLOSE)


@dataclass(frozen=True, slots=True)
class Said:
    """Text outside every call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The model calls function ``name``; calls are counted from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallWrote:
    """More of the arguments, as the model wrote them."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallDone:
    """The arguments are whole, and were checked."""

    index: int


HermesEvent = Said | CallBegun | CallWrote | CallDone


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


class HermesParser:
    """Incremental: the same text in any cut gives the same calls, arguments and text.

    Arguments are passed on as they come. Where ``arguments`` stands before ``name`` they come at the end.
    White space before and between calls is dropped.

    Args:
        check: given name and arguments of a finished call, says what is wrong with them, or None. With
            arguments None it is asked about the name alone.
    """

    def __init__(self, check: Callable[[str, dict[str, object] | None], str | None]) -> None:
        self.calls = 0
        self._check = check
        self._state = _State.TEXT
        self._held = ""
        self._span = JsonSpan()
        self._name = ""
        self._arguments: list[str] = []

    def feed(self, text: str) -> list[HermesEvent]:
        """Take more text.

        Raises:
            CallError: the model's call can't be made; nothing more may be fed.
        """
        self._held += text
        events: list[HermesEvent] = []
        steps = {
            _State.TEXT: self._text,
            _State.HEAD: self._head,
            _State.ARGUMENTS: self._write,
            _State.TAIL: self._tail,
        }
        while steps[self._state](events):
            pass
        return events

    def end(self, *, cut_off: bool) -> list[HermesEvent]:
        """The reply is over; ``cut_off`` where a limit ended it, so that a call may be incomplete.

        Raises:
            CallError: as `feed`.
        """
        held, self._held = self._held, ""
        events: list[HermesEvent] = []
        if self._state is _State.TEXT:
            if held.strip() or not self.calls:
                events.append(Said(held))
        elif self._state is _State.TAIL and held.lstrip()[:1] in ("", "}"):
            events.append(CallDone(self.calls - 1))
        elif self._state is _State.HEAD and not cut_off:
            self._whole(held, events)
        elif not cut_off:
            raise self._error("the call ends too early", "".join(self._arguments) + held)
        return events

    def _text(self, events: list[HermesEvent]) -> bool:
        said, tag, after = self._held.partition(OPEN)
        if tag:
            # Text between two calls counts as said; white space there does not.
            if said.strip():
                events.append(Said(said.rstrip()))
            self._state, self._held = _State.HEAD, after
            return True
        sure = said[: len(said) - held_back(said, [OPEN])].rstrip()
        if sure:
            events.append(Said(sure))
            self._held = said[len(sure) :]
        return False

    def _head(self, events: list[HermesEvent]) -> bool:
        if found := _HEAD.match(self._held):
            self._begin(str(self._loads(found[1])), events)
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
            events.append(CallWrote(self.calls - 1, piece))
        if not self._span.closed:
            return False
        self._checked("".join(self._arguments))
        self._state = _State.TAIL
        return True

    def _tail(self, events: list[HermesEvent]) -> bool:
        found = _TAIL.match(self._held)
        if found is None:
            if CLOSE in self._held:
                raise self._error("something follows the arguments", self._held)
            return False
        events.append(CallDone(self.calls - 1))
        self._state, self._held = _State.TEXT, self._held[found.end() :]
        return True

    def _whole(self, written: str, events: list[HermesEvent]) -> None:
        """A call whose keys stand in another order, all at once."""
        call = self._loads(written)
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise self._error("a call is an object with 'name' and 'arguments'", written)
        self._begin(call["name"], events)
        arguments = json.dumps(call.get("arguments", {}), ensure_ascii=False)
        self._checked(arguments)
        events += [CallWrote(self.calls - 1, arguments), CallDone(self.calls - 1)]

    def _begin(self, name: str, events: list[HermesEvent]) -> None:
        self._name, self._arguments = name, []
        if (complaint := self._check(name, None)) is not None:
            raise self._error(complaint, self._held)
        events.append(CallBegun(self.calls, name))
        self.calls += 1

    def _checked(self, written: str) -> None:
        arguments = self._loads(written)
        if not isinstance(arguments, dict):
            raise self._error("the arguments are no JSON object", written)
        if (complaint := self._check(self._name, arguments)) is not None:
            raise self._error(complaint, written)

    def _loads(self, written: str) -> object:
        try:
            return loads(written)
        except ValueError as error:
            raise self._error(f"not JSON: {error}", written) from None

    def _error(self, message: str, written: str) -> CallError:
        where = f"function '{self._name}'" if self._name else "a function"
        return CallError(f"The model's call of {where} can't be made: {message}.", written)
