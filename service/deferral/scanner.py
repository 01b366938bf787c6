"""Incremental scanner that finds code blocks and execute markers in streamed text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from service.deferral.call_span import CallSpan, SpanState

FENCE: Final = "```"
LANGUAGES: Final = frozenset({"python", "py"})


@dataclass(frozen=True, slots=True)
class BlockClosed:
    """A closed Python block. ``start`` and ``end`` are its offsets, including the fences."""

    code: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class MarkerSeen:
    """An execute marker outside of fences. ``end`` is the offset after it."""

    end: int


@dataclass(frozen=True, slots=True)
class CallTagSeen:
    """An opening tag of a function call outside of Python fences. ``end`` is the offset after it."""

    end: int
    in_fence: bool
    """It is inside a block of another language."""


@dataclass(frozen=True, slots=True)
class CallEnded:
    """End of the call that `FenceScanner.open_call` began."""

    text: str
    """The call without its opening tag."""
    end: int
    is_complete: bool
    """False if the text is not a call after all."""


ScanEvent = BlockClosed | MarkerSeen | CallTagSeen | CallEnded


class _FenceState(Enum):
    TEXT = auto()
    PYTHON = auto()
    OTHER = auto()
    CALL = auto()


class FenceScanner:
    """Scanner of the text of one turn.

    * A fence opens with a line of three backticks and a language.
    * It closes at the first three backticks at the start of a line, so strings in the code may contain
    backticks.
    * Blocks in other languages are skipped, but a Python fence inside one of them opens a block, because
    models
      forget to close fences.
    * As in CommonMark, the indentation of the opening fence is removed from each line of code.
    * A marker inside a fence is part of the code.

    The events do not depend on how the text is split into calls of ``feed``. Time is linear in its length.

    With ``call_tag``, the opening tag of function calls is reported too, also inside blocks of other
    languages. If it equals the marker, `CallTagSeen` takes the place of `MarkerSeen`. The caller decides
    whether a tag begins a call, with `open_call`. Fences and markers inside a call are part of it.
    """

    def __init__(self, marker: str, *, call_tag: str | None = None) -> None:
        self._marker = marker
        self._call_tag = call_tag
        self._call: CallSpan | None = None
        self._state_before_call = _FenceState.TEXT
        self._tags = [tag for tag in (marker, call_tag) if tag is not None]
        self._tail_chars = max(map(len, self._tags))
        self._state = _FenceState.TEXT
        self._line: list[str] = []
        self._tail = ""  # the last characters of the line, as many as the longest tag has
        self._ticks = 0  # backticks on the line so far, if it holds nothing else than its margin; else -1
        self._can_open = True  # False on the line that closed a block
        self._closes_other = False
        self._code: list[str] = []
        self._indent = 0
        self._start = 0
        self._line_start = 0
        self._offset = 0

    @property
    def in_code(self) -> bool:
        """Whether a Python block is open at the end of the text so far."""
        return self._state is _FenceState.PYTHON

    @property
    def offset(self) -> int:
        """Length of the text so far."""
        return self._offset

    def feed(self, text: str) -> list[ScanEvent]:
        """Add text and return the events that it completes, in order."""
        return list(self.scan(text))

    def scan(self, text: str) -> Iterable[ScanEvent]:
        """Add text and return the events that it completes, each as soon as its last character is added."""
        if (  # nearly all tokens
            self._marker[-1] not in text
            and "\n" not in text
            and "`" not in text
            and self._call is None
            and (self._call_tag is None or self._call_tag[-1] not in text)
        ):
            self._append(text)
            self._offset += len(text)
            return ()
        return self._events(text)

    def _events(self, text: str) -> Iterator[ScanEvent]:
        for char in text:
            if self._call is not None and (ended := self._add_to_call(char, self._call)) is not None:
                yield ended
                if ended.end > self._offset:  # the call includes the character
                    self._offset += 1
                    continue
            self._offset += 1
            if char == "\n":
                self._end_line()
            else:
                self._append(char)
                event = self._match()
                if event is not None:
                    yield event

    def open_call(self) -> None:
        """Begin a call at the end of the text so far. An open Python block is lost."""
        in_other = self._state is _FenceState.OTHER
        self._state_before_call = _FenceState.OTHER if in_other else _FenceState.TEXT
        self._state, self._call, self._code = _FenceState.CALL, CallSpan(), []

    def _add_to_call(self, char: str, call: CallSpan) -> CallEnded | None:
        """Add ``char`` to the call. Return the end of the call if this is its last character or the next one
        after it."""
        state = call.add(char)
        if state is SpanState.OPEN:
            return None
        self._state, self._call = self._state_before_call, None
        if state is SpanState.BROKEN:
            return CallEnded(call.text, self._offset - call.dropped, call.is_complete)
        self._append(char)
        return CallEnded(call.text, self._offset + 1, call.is_complete)

    def abandon_block(self) -> None:
        """Close an open fence without a block. Its text is ignored."""
        self._state, self._code = _FenceState.TEXT, []

    def _append(self, text: str) -> None:
        """Add ``text`` to the line. It is a single backtick or contains none."""
        self._line.append(text)
        self._tail = (self._tail + text)[-self._tail_chars :]
        if text == "`":
            self._ticks += self._ticks >= 0
        elif text and (self._ticks or text.strip(" \t")):
            self._ticks = -1

    def _match(self) -> ScanEvent | None:
        """Return the event that the current, unfinished line completes, if any."""
        if self._call_tag is not None and self._tail.endswith(self._call_tag):
            in_fence = self._state is _FenceState.OTHER
            if in_fence or self._state is _FenceState.TEXT:
                return CallTagSeen(self._offset, in_fence)
        if self._state is _FenceState.TEXT:
            return MarkerSeen(self._offset) if self._tail.endswith(self._marker) else None
        if self._ticks != len(FENCE) or self._state is _FenceState.CALL:
            return None
        if self._state is _FenceState.PYTHON:
            self._can_open = False
            block = BlockClosed("\n".join(self._code), self._start, self._offset)
            self._state, self._code = _FenceState.TEXT, []
            return block
        self._state, self._closes_other = _FenceState.TEXT, True
        return None

    def _end_line(self) -> None:
        line = "".join(self._line)
        if self._state is _FenceState.PYTHON:
            margin = len(line) - len(line.lstrip(" \t"))
            self._code.append(line[min(margin, self._indent) :])
        elif self._state is _FenceState.TEXT and self._can_open:
            self._open_fence(line)
        self._line, self._tail, self._ticks, self._line_start = [], "", 0, self._offset
        self._can_open, self._closes_other = True, False

    def _open_fence(self, line: str) -> None:
        stripped = line.strip()
        if not stripped.startswith(FENCE):
            return
        info = stripped.removeprefix(FENCE).strip().lower()
        if info in LANGUAGES:
            self._state = _FenceState.PYTHON
            self._start = self._line_start
            self._indent = len(line) - len(line.lstrip(" \t"))
        elif "`" not in info and self._marker not in info and not self._closes_other:
            self._state = _FenceState.OTHER
