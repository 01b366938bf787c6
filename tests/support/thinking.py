"""A tokenizer with tokens for thoughts, and a scripted engine that uses it."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing

from service.engines.base import Sampling, TokenChunk
from tests.support.char_tokenizer import CharTokenizer
from tests.support.scripted import ScriptedEngine

_TAGS = ("<think>", "</think>")
_FIRST = CharTokenizer.vocab_size
_PATTERN = re.compile("(<think>|</think>)")


class ThinkingTokenizer(CharTokenizer):
    """One id per character, and one for each tag of a thought."""

    vocab_size = _FIRST + len(_TAGS)

    def encode(self, text: str, *, allow_special: bool) -> list[int]:
        if not allow_special:
            return super().encode(text, allow_special=False)
        ids: list[int] = []
        for piece in _PATTERN.split(text):
            tag = self.token_id(piece) if piece in _TAGS else None
            ids += super().encode(piece, allow_special=True) if tag is None else [tag]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(
            _TAGS[i - _FIRST] if i >= _FIRST else super(ThinkingTokenizer, self).decode([i]) for i in ids
        )

    def token_id(self, token: str) -> int | None:
        return _FIRST + _TAGS.index(token) if token in _TAGS else super().token_id(token)


class ThinkingEngine(ScriptedEngine):
    """A scripted engine whose thoughts have tags of one token.

    Args:
        turns: the replies, as in `ScriptedEngine`.
        size: number of tokens in a chunk.
        continues: the single turn is one reply, which each call continues where its prompt ends.
    """

    capabilities = frozenset({"json_schema", "regex", "grammar", "min_tokens"})

    def __init__(self, *turns: str, size: int = 1, continues: bool = False) -> None:
        super().__init__(*turns)
        self.tokenizer: ThinkingTokenizer = ThinkingTokenizer()
        self._size = size
        self._continues = continues

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        if self._continues:
            self._turns = [self._rest(self.tokenizer.decode(prompt_ids))]
        waiting: list[TokenChunk] = []
        async with aclosing(super().generate(prompt_ids, sampling, stop_token_ids)) as chunks:
            async for chunk in chunks:
                waiting.append(chunk)
                if len(waiting) == self._size or chunk.finish_reason is not None:
                    yield _joined(waiting)
                    waiting = []
        if waiting:
            yield _joined(waiting)

    def _rest(self, context: str) -> str:
        if not hasattr(self, "_whole"):
            self._whole, self._first = self._turns[0], context
        written = context.removeprefix(self._first)
        if self._whole.startswith(written):
            return self._whole.removeprefix(written)
        return "Done." + self._whole[self._whole.rindex("<|") :]  # the server closed the thought


def _joined(chunks: Sequence[TokenChunk]) -> TokenChunk:
    return TokenChunk(
        tuple(token for chunk in chunks for token in chunk.ids),
        "".join(chunk.text for chunk in chunks),
        tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        finish_reason=chunks[-1].finish_reason,
    )
