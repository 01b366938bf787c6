"""A scripted engine for many concurrent episodes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing

from service.engines.base import Sampling, TokenChunk
from tests.support.scripted import ScriptedEngine


class ReplyEngine(ScriptedEngine):
    """An engine that returns ``reply(context so far)``."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        super().__init__("")
        self._reply = reply

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        speaker = ScriptedEngine(self._reply(self.tokenizer.decode(prompt_ids)))
        self.open_streams += 1
        try:
            async with aclosing(speaker.generate(prompt_ids, sampling, stop_token_ids)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self.open_streams -= 1
