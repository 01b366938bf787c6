"""Split a reply into reasoning and content: ``<think>...</think>``, then the content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from service.engines.base import Tokenizer
from service.episode.stop_strings import partial_stop_length

THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """Text that the model thought."""

    text: str


@dataclass(slots=True)
class SplitText:
    """Text added to the reasoning and to the content."""

    reasoning: str = ""
    content: str = ""


def opens_thought(prompt_end: str) -> bool:
    """Return whether the chat template opened a thought, as templates of models that always think do."""
    return prompt_end.rstrip().endswith(THINK_OPEN)


def without_thought(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of a reply after its thought, the part that a template keeps of an earlier turn."""
    close = tokenizer.token_id(THINK_CLOSE)
    rest = list(ids)
    if close in rest:
        del rest[: rest.index(close) + 1]
        while rest and not tokenizer.decode(rest[:1]).strip():
            del rest[0]
    return tuple(rest)


class _ReasoningState(Enum):
    START = auto()  # only white space so far: a thought may open
    THINKING = auto()
    CONTENT = auto()


class ReasoningParser:
    """Incremental parser of a reply's thought. The result doesn't depend on how the text is split.

    Only the first thought of a reply counts. White space next to the tags is dropped.

    Args:
        prompt_end: the last characters of the prompt. Some templates open the thought themselves; without
            thinking, Qwen3's writes an empty one.
    """

    def __init__(self, prompt_end: str) -> None:
        self._state = _ReasoningState.START
        if opens_thought(prompt_end):
            self._state = _ReasoningState.THINKING
        elif prompt_end.rstrip().endswith(THINK_CLOSE):
            self._state = _ReasoningState.CONTENT
        self._buffer = ""
        self._at_tag = self._state is not _ReasoningState.CONTENT  # white space next to a tag is dropped

    @property
    def is_thinking(self) -> bool:
        """A thought is open."""
        return self._state is _ReasoningState.THINKING

    @property
    def is_done(self) -> bool:
        """All further text is content, unchanged."""
        return self._state is _ReasoningState.CONTENT and not self._at_tag

    def feed(self, text: str) -> SplitText:
        """Split ``text``, which the model wrote."""
        if self.is_done:
            return SplitText(content=text)
        split = SplitText()
        self._buffer += text
        if self._state is _ReasoningState.START:
            self._parse_start()
        if self._state is _ReasoningState.THINKING:
            self._parse_thought(split)
        if self._state is _ReasoningState.CONTENT:
            self._drop_space()
            split.content, self._buffer = self._buffer, ""
        return split

    def insert(self, text: str) -> SplitText:
        """Add ``text`` that was given to the model. It joins the current side as it is, tags included."""
        split = self.end()
        self._at_tag = False
        if self.is_thinking:
            split.reasoning += text
        else:
            self._state = _ReasoningState.CONTENT
            split.content += text
        return split

    def end(self) -> SplitText:
        """Return the text that was held back."""
        rest, self._buffer = self._buffer, ""
        return SplitText(reasoning=rest) if self.is_thinking else SplitText(content=rest)

    def _parse_start(self) -> None:
        begun = self._buffer.lstrip()
        if begun.startswith(THINK_OPEN):
            self._state, self._buffer = _ReasoningState.THINKING, begun.removeprefix(THINK_OPEN)
        elif begun and not THINK_OPEN.startswith(begun):
            self._state, self._at_tag = _ReasoningState.CONTENT, False

    def _parse_thought(self, split: SplitText) -> None:
        self._drop_space()
        thought, close, after = self._buffer.partition(THINK_CLOSE)
        if close:
            split.reasoning, self._buffer = thought.rstrip(), after
            self._state, self._at_tag = _ReasoningState.CONTENT, True
            return
        certain = thought[: len(thought) - partial_stop_length(thought, [THINK_CLOSE])].rstrip()
        split.reasoning, self._buffer = certain, thought[len(certain) :]

    def _drop_space(self) -> None:
        if self._at_tag:
            self._buffer = self._buffer.lstrip()
            self._at_tag = not self._buffer
