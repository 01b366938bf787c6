"""An engine whose replies end at other tokens than the model's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence

from service.engines.base import Engine, EngineStats, Sampling, TokenChunk, Tokenizer


class EngineWithEndings:
    """Another engine, with its ``eos_token_ids`` replaced for one request.

    Args:
        engine: samples the tokens.
        endings: token ids that end a reply.
    """

    def __init__(self, engine: Engine, endings: frozenset[int]) -> None:
        self._engine = engine
        self._endings = endings

    @property
    def model_name(self) -> str:
        return self._engine.model_name

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    @property
    def context_length(self) -> int:
        return self._engine.context_length

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._endings

    @property
    def healthy(self) -> bool:
        return self._engine.healthy

    @property
    def capabilities(self) -> frozenset[str]:
        return self._engine.capabilities

    def knows_logprobs(self, sampling: Sampling) -> bool:
        """See ``Engine.knows_logprobs``."""
        return self._engine.knows_logprobs(sampling)

    @property
    def adapters(self) -> tuple[str, ...]:
        return self._engine.adapters

    def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        """See ``Engine.generate``."""
        return self._engine.generate(prompt_ids, sampling, stop_token_ids)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    async def start(self) -> None:
        """Does nothing: the other engine is started by its owner."""

    async def stop(self) -> None:
        """Does nothing: the other engine is stopped by its owner."""
