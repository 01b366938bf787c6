"""Part a reply into what the model thought and what it said: ``<think>...</think>``, then the content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from service.engines.base import Tokenizer
from service.episode.stop_strings import held_back

OPEN: Final = "<think>"
CLOSE: Final = "</think>"


def is_effort(effort: str | None) -> bool | None:
    """Whether a model that knows no degrees should think at this effort; None where none is given."""
    return None if effort is None else effort not in ("none", "minimal")


@dataclass(slots=True)
class Parted:
    """What a piece of text adds to each side."""

    reasoning: str = ""
    content: str = ""


def without_thought(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of a reply after its thought: what a template keeps of an earlier turn."""
    close = tokenizer.token_id(CLOSE)
    rest = list(ids)
    if close in rest:
        del rest[: rest.index(close) + 1]
        while rest and not tokenizer.decode(rest[:1]).strip():
            del rest[0]
    return tuple(rest)


class _State(Enum):
    START = auto()  # nothing but white space yet: a thought may open
    THINKING = auto()
    CONTENT = auto()


class ThinkSplitter:
    """Incremental: the same text in any cut adds up to the same two sides.

    Only the reply's first thought counts. White space at the tags belongs to neither side.

    Args:
        prompt_end: the last characters of the prompt. Some templates open the thought themselves, and without
            thinking Qwen3's gives an empty one.
    """

    def __init__(self, prompt_end: str) -> None:
        end = prompt_end.rstrip()
        self._state = _State.START
        if end.endswith(OPEN):
            self._state = _State.THINKING
        elif end.endswith(CLOSE):
            self._state = _State.CONTENT
        self._held = ""
        self._at_tag = self._state is not _State.CONTENT  # white space next to a tag is dropped

    @property
    def thinking(self) -> bool:
        """Whether a thought is open."""
        return self._state is _State.THINKING

    def feed(self, text: str) -> Parted:
        """Take what the model wrote."""
        if self._state is _State.CONTENT and not self._at_tag:
            return Parted(content=text)
        parted = Parted()
        self._held += text
        if self._state is _State.START:
            self._start()
        if self._state is _State.THINKING:
            self._think(parted)
        if self._state is _State.CONTENT:
            self._say(parted)
        return parted

    def given(self, text: str) -> Parted:
        """Take text that was given to the model: it joins the side where the model is, tags and all."""
        parted = self.end()
        self._at_tag = False
        if self.thinking:
            parted.reasoning += text
        else:
            self._state = _State.CONTENT
            parted.content += text
        return parted

    def end(self) -> Parted:
        """What was held back."""
        held, self._held = self._held, ""
        return Parted(reasoning=held) if self.thinking else Parted(content=held)

    def _start(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(OPEN):
            self._state, self._held = _State.THINKING, begun.removeprefix(OPEN)
        elif begun and not OPEN.startswith(begun):
            self._state, self._at_tag = _State.CONTENT, False

    def _think(self, parted: Parted) -> None:
        if self._at_tag:
            self._held = self._held.lstrip()
            self._at_tag = not self._held
        thought, close, after = self._held.partition(CLOSE)
        if close:
            parted.reasoning, self._held = thought.rstrip(), after
            self._state, self._at_tag = _State.CONTENT, True
            return
        sure = thought[: len(thought) - held_back(thought, [CLOSE])].rstrip()
        parted.reasoning, self._held = sure, thought[len(sure) :]

    def _say(self, parted: Parted) -> None:
        if self._at_tag:
            self._held = self._held.lstrip()
            self._at_tag = not self._held
        parted.content, self._held = self._held, ""
