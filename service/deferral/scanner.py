"""Incremental scanner that finds code blocks and execute markers in streamed text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

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


ScanEvent = BlockClosed | MarkerSeen


class _FenceState(Enum):
    TEXT = auto()
    PYTHON = auto()
    OTHER = auto()


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
    """

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._state = _FenceState.TEXT
        self._line: list[str] = []
        self._tail = ""  # the last characters of the line, as many as the marker has
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

    def feed(self, text: str) -> list[ScanEvent]:
        """Add text and return the events that it completes, in order."""
        if self._marker[-1] not in text and "\n" not in text and "`" not in text:  # completes no event
            self._append(text)
            self._offset += len(text)
            return []
        events: list[ScanEvent] = []
        for char in text:
            self._offset += 1
            if char == "\n":
                self._end_line()
            else:
                self._append(char)
                event = self._match()
                if event is not None:
                    events.append(event)
        return events

    def abandon_block(self) -> None:
        """Close an open fence without a block. Its text is ignored."""
        self._state, self._code = _FenceState.TEXT, []

    def _append(self, text: str) -> None:
        """Add ``text`` to the line. It is a single backtick or contains none."""
        self._line.append(text)
        self._tail = (self._tail + text)[-len(self._marker) :]
        if text == "`":
            self._ticks += self._ticks >= 0
        elif text and (self._ticks or text.strip(" \t")):
            self._ticks = -1

    def _match(self) -> ScanEvent | None:
        """Return the event that the current, unfinished line completes, if any."""
        if self._state is _FenceState.TEXT:
            return MarkerSeen(self._offset) if self._tail == self._marker else None
        if self._ticks != len(FENCE):
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
