"""Episodes whose code waits for functions of the client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.episode.events import FlushFinished, FlushSuspended, ToolCalled
from service.episode.runner import EpisodeRunner
from service.tools.base import ToolSpec
from service.tools.client import ClientCalls
from service.tools.toolset import Tool, ToolSet
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.tool_sandbox import ToolSandbox

ASK = ToolSpec("ask", by_client=True, parameters={"type": "object"})


async def tokens(code: list[str], answers: dict[str, str], *, by_client: bool) -> tuple[list[int], int]:
    """Return the token ids of an episode, and how often it was suspended."""
    engine = ScriptedEngine(
        *(f"See\n```python\n{block}\n```<tool_call>" for block in code), f"So \\boxed{{1}}.{EOS}"
    )
    client = ClientCalls()

    async def at_once(arguments: dict[str, Any], _call_id: str) -> object:
        return answers[arguments["q"]]

    ask = client.tool(ASK, "ask") if by_client else Tool(ToolSpec("ask", parameters=ASK.parameters), at_once)
    runner = EpisodeRunner(engine, ToolSandbox(), DeferralPolicy(), Sampling())
    episode = runner.start(engine.tokenizer.encode("q", allow_special=False))
    stops = 0
    async for event in runner.run(episode, Sampling(max_tokens=5000), episode_id="e", tools=ToolSet([ask])):
        if isinstance(event, FlushSuspended):
            stops += 1
            await asyncio.sleep(0.01)
            client.answer({call.id: answers[str(call.arguments["q"])] for call in event.calls})
    return episode.transcript.ids, stops


QUESTIONS = st.sampled_from(["a", "b", "c"])
LINES = st.one_of(
    QUESTIONS.map(lambda q: f"call ask {json.dumps({'q': q})}"),
    st.lists(QUESTIONS, min_size=1, max_size=4).map(
        lambda qs: f"all ask {json.dumps([{'q': q} for q in qs])}"
    ),
)
BLOCKS = st.lists(LINES, min_size=1, max_size=2).map("\n".join)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(BLOCKS, min_size=1, max_size=2),
    st.fixed_dictionaries({q: st.text("ab{}\\<_|>\n", max_size=8) for q in "abc"}),
)
def test_tokens_equal_those_of_a_tool_that_answers_at_once(code: list[str], answers: dict[str, str]) -> None:
    waited, stops = asyncio.run(tokens(code, answers, by_client=True))
    expected, _ = asyncio.run(tokens(code, answers, by_client=False))
    assert waited == expected
    assert stops == "\n".join(code).count("\n") + 1


async def test_an_episode_that_is_closed_while_it_waits_closes_its_session() -> None:
    engine = ScriptedEngine('```python\ncall ask {"q": "a"}\n```<tool_call>')
    sandbox, client = ToolSandbox(), ClientCalls()
    runner = EpisodeRunner(engine, sandbox, DeferralPolicy(), Sampling())
    stream = runner.run(
        runner.start(engine.tokenizer.encode("q", allow_special=False)),
        Sampling(max_tokens=500),
        episode_id="e",
        tools=ToolSet([client.tool(ASK, "ask")]),
    )
    async for event in stream:
        if isinstance(event, FlushSuspended):
            break
    assert engine.open_streams == 0
    await stream.aclose()
    assert sandbox.sessions[0].log == ["suspend", "close"]


async def test_events_of_a_call_of_the_client() -> None:
    engine = ScriptedEngine('```python\ncall ask {"q": "a"}\n```<tool_call>', f"So.{EOS}")
    client = ClientCalls()
    runner = EpisodeRunner(engine, ToolSandbox(), DeferralPolicy(answer="any"), Sampling())
    events: list[Any] = []
    async for event in runner.run(
        runner.start(engine.tokenizer.encode("q", allow_special=False)),
        Sampling(max_tokens=500),
        episode_id="e",
        tools=ToolSet([client.tool(ASK, "ask")]),
    ):
        events.append(event)
        if isinstance(event, FlushSuspended):
            client.answer({call.id: "yes" for call in event.calls})
    kinds = [
        type(event) for event in events if isinstance(event, ToolCalled | FlushSuspended | FlushFinished)
    ]
    assert kinds == [ToolCalled, FlushSuspended, ToolCalled, FlushFinished]
    [flush] = [event.tool for event in events if isinstance(event, FlushFinished)]
    [call] = flush.calls
    assert (call.by_client, call.status, call.output) == (True, "ok", "yes")
