"""Find where a JSON object ends while it is still being written."""

from __future__ import annotations

import json
from typing import NoReturn


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
