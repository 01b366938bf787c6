"""Generation without deferral: the marker is a token like any other, and no code runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from service.deferral.episode import Outcome
from service.engines.base import Engine, Sampling
from service.events import EpisodeEvent, Finished, Sampled


async def run_plain(
    prompt_ids: Sequence[int], engine: Engine, sampling: Sampling
) -> AsyncGenerator[EpisodeEvent, None]:
    """One turn to its end, in the events of `service.driver.run_episode`. Closing it cancels the engine.

    Raises:
        EngineError: the engine failed.
    """
    outcome = Outcome.VOID
    stream = engine.generate(prompt_ids, sampling, stop_token_ids=engine.eos_token_ids)
    async with aclosing(stream):
        async for chunk in stream:
            yield Sampled(chunk)
            if chunk.finish_reason == "length":
                outcome = Outcome.LENGTH
    yield Finished(outcome)
