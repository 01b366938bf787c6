"""Generation without deferral: the marker is a token like any other, and no code runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from service.deferral.episode import Outcome
from service.engines.base import Engine, Sampling
from service.events import EpisodeEvent, Finished, Sampled
from service.stops import Stopped, reply_endings, until_stop


async def run_plain(
    prompt_ids: Sequence[int], engine: Engine, sampling: Sampling, *, stops: Sequence[str] = ()
) -> AsyncGenerator[EpisodeEvent, None]:
    """One turn to its end, in the events of `service.driver.run_episode`. Closing it cancels the engine.

    Raises:
        EngineError: the engine failed.
    """
    outcome = Outcome.VOID
    stream = engine.generate(prompt_ids, sampling, stop_token_ids=engine.eos_token_ids)
    async with aclosing(until_stop(stream, stops, reply_endings(engine))) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, Stopped):
                yield chunk
                continue
            yield Sampled(chunk)
            if chunk.finish_reason == "length":
                outcome = Outcome.LENGTH
    yield Finished(outcome)
