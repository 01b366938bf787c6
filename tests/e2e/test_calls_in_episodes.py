"""Calls of functions in an episode, by an adapter that was trained to call, on the embedded engine."""

from __future__ import annotations

import json

from service.deferral.episode import Outcome
from service.deferral.policy import ASSISTANT_POLICY, DeferralPolicy
from service.engines.base import Sampling
from service.engines.checkpoint import quickstart
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from service.episode.accumulator import ReplyAccumulator
from service.episode.events import EpisodeEvent, Finished, Sampled
from service.episode.runner import EpisodeRunner
from service.episode.tool_parser import ArgumentsDelta, ToolCallEnd, ToolCallParser
from tests.support.caller_adapter import CALLER, CITIES, QUESTION, TOOLS
from tests.support.scripted import ScriptedSandbox, printed

GREEDY = Sampling(temperature=0, max_tokens=150, adapter="caller")


def sampled(events: list[EpisodeEvent]) -> list[int]:
    return [token for event in events if isinstance(event, Sampled) for token in event.chunk.ids]


async def test_an_episode_samples_the_tokens_of_a_plain_reply() -> None:
    """The engine stops at the marker and continues: the result is as if it had not stopped."""
    settings = TransformersSettings(model=str(quickstart()), max_slots=2, adapters={"caller": CALLER})
    engine = TransformersEngine(settings)
    box = ScriptedSandbox(lambda blocks: printed(""))
    await engine.start()
    try:
        for policy in (DeferralPolicy(), ASSISTANT_POLICY):
            runner = EpisodeRunner(engine, box, policy, Sampling())
            prompt = runner.render([{"role": "user", "content": QUESTION}], deferral=False, tools=TOOLS)
            plain = [event async for event in runner.complete(prompt, GREEDY)]
            episode = runner.start(prompt, functions=["weather"])
            events = [event async for event in runner.run(episode, GREEDY, episode_id="e")]
            assert sampled(events) == sampled(plain)
            assert episode.transcript.ids == sampled(plain)
            assert events[-1] == Finished(Outcome.CALL)
            parser = ToolCallParser(lambda name, arguments: None, strict=False, marked=True)
            reply = ReplyAccumulator(engine.tokenizer, runner.endings, tools=parser)
            parts = [part for event in events for part in reply.add(event)]
            assert sum(isinstance(part, ToolCallEnd) for part in parts) == reply.finished_calls == 2
            texts = ["", ""]
            for part in parts:
                if isinstance(part, ArgumentsDelta):
                    texts[part.index] += part.text
            assert [json.loads(text) for text in texts] == [{"city": city} for city in CITIES]
    finally:
        await engine.stop()
