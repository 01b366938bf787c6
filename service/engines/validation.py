"""Validation of calls before they reach the model, and per-request end tokens.

A call that fails inside the batch could affect other requests, and its error would be hard to understand.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from math import isfinite

from service.engines.base import (
    ContextLengthExceededError,
    Engine,
    EngineError,
    EngineStats,
    Sampling,
    TokenChunk,
    Tokenizer,
    unsupported,
)


def check(engine: Engine, prompt_ids: Sequence[int], sampling: Sampling, vocab_size: int) -> None:
    """Validate one call of ``engine.generate``.

    Raises:
        ContextLengthExceededError: the prompt leaves no room for one token.
        EngineError: a value is out of range, or the engine does not support a field. The message names the
        field.
    """
    _check_prompt(prompt_ids, engine.context_length, vocab_size)
    _check_ranges(sampling, vocab_size)
    if sampling.adapter is not None and sampling.adapter not in engine.adapters:
        known = ", ".join(engine.adapters) or "none"
        raise EngineError(f"adapter {sampling.adapter!r} is unknown; adapters of this engine: {known}")
    if missing := unsupported(engine, sampling):
        raise EngineError(f"this engine does not support {missing[0]} (model {engine.model_name!r})")


def _check_prompt(prompt_ids: Sequence[int], context_length: int, vocab_size: int) -> None:
    if len(prompt_ids) >= context_length:
        raise ContextLengthExceededError(
            f"the prompt has {len(prompt_ids)} tokens and leaves no room in the context of "
            f"{context_length}: shorten it"
        )
    if not prompt_ids:
        raise EngineError("the prompt is empty: it needs at least one token")
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab_size:
        raise EngineError(f"the prompt holds a token id outside of 0..{vocab_size - 1}")


def _check_ranges(sampling: Sampling, vocab_size: int) -> None:
    for name, right, wanted in (
        ("temperature", 0 <= sampling.temperature < float("inf"), "0 or more"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("top_k", sampling.top_k >= 0, "0 (no limit) or more"),
        ("min_p", 0 <= sampling.min_p <= 1, "between 0 and 1"),
        ("max_tokens", sampling.max_tokens >= 1, "1 or more"),
        ("min_tokens", 0 <= sampling.min_tokens <= sampling.max_tokens, "0 or more, and at most max_tokens"),
        ("top_logprobs", sampling.top_logprobs >= 0, "0 or more"),
        ("presence_penalty", isfinite(sampling.presence_penalty), "a number"),
        ("frequency_penalty", isfinite(sampling.frequency_penalty), "a number"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < float("inf"), "above 0"),
    ):
        if not right:
            raise EngineError(f"{name} is {getattr(sampling, name)}, must be {wanted}")
    for token_id, bias in sampling.logit_bias:
        if not (0 <= token_id < vocab_size and isfinite(bias)):
            raise EngineError(
                f"logit_bias: {token_id} is outside of 0..{vocab_size - 1}, or {bias} is not finite"
            )


class EngineWithEndTokens:
    """A wrapper that replaces an engine's ``eos_token_ids`` for one request.

    Args:
        engine: the wrapped engine.
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

    def supports_logprobs(self, sampling: Sampling) -> bool:
        """See ``Engine.supports_logprobs``."""
        return self._engine.supports_logprobs(sampling)

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
        """No effect: the owner of the wrapped engine starts it."""

    async def stop(self) -> None:
        """No effect: the owner of the wrapped engine stops it."""
