"""Functions of the client beside code, through the runner and the accumulator."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.episode import CallEdge, Outcome
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling, TokenChunk
from service.episode.accumulator import ReplyAccumulator
from service.episode.events import CallClosed, CallOpened, EpisodeEvent, Finished, Observed, Sampled
from service.episode.runner import EpisodeRunner, _cut_at_calls
from service.episode.tool_parser import ArgumentsDelta, TextDelta, ToolCallEnd, ToolCallParser, ToolCallStart
from tests.support.scripted import EOS, ResumingEngine, ScriptedEngine, ScriptedSandbox, printed

BLOCK = "```python\nprint(6 * 7)\n```"
ULM = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
OSLO = '<tool_call>\n{"arguments": {"city": "Oslo"}, "name": "weather"}\n</tool_call>'
SEEN = "\nCode execution result: 42\n</tool_call>\n"


def check(name: str, arguments: dict[str, object] | None) -> str | None:
    return None if name == "weather" else "no such function"


def accumulator(engine: ScriptedEngine, hidden_marker: str | None = None) -> ReplyAccumulator:
    endings = dict.fromkeys(engine.eos_token_ids, EOS)
    parser = ToolCallParser(check, strict=False, marked=True)
    return ReplyAccumulator(engine.tokenizer, endings, tools=parser, hidden_marker=hidden_marker)


async def run(
    engine: ScriptedEngine,
    *,
    max_tokens: int = 8000,
    seed: int | None = None,
    stop: Sequence[str] = (),
    policy: DeferralPolicy | None = None,
    parallel: bool = True,
) -> list[EpisodeEvent]:
    box = ScriptedSandbox(lambda blocks: printed("42\n"))
    runner = EpisodeRunner(engine, box, policy or DeferralPolicy(), Sampling())
    prompt = engine.tokenizer.encode("?", allow_special=True)
    episode = runner.start(prompt, functions=["weather"], parallel_calls=parallel)
    stream = runner.run(episode, Sampling(max_tokens=max_tokens, seed=seed), episode_id="e", stop=stop)
    return [event async for event in stream]


def read(reply: ReplyAccumulator, events: list[EpisodeEvent]) -> tuple[str, list[tuple[str, str]]]:
    """The reply's text, and its finished calls."""
    text, calls, finished = "", list[list[str]](), list[tuple[str, str]]()
    for event in events:
        for part in reply.add(event):
            match part:
                case TextDelta(added):
                    text += added
                case ToolCallStart(_, name):
                    calls.append([name, ""])
                case ArgumentsDelta(_, added):
                    calls[-1][1] += added
                case ToolCallEnd():
                    finished.append((calls[-1][0], calls[-1][1]))
    return text, finished


@pytest.mark.parametrize("hidden", [None, "<tool_call>"])
async def test_code_then_calls(hidden: str | None) -> None:
    engine = ResumingEngine(f"I compute.\n{BLOCK}<tool_call>", f"It is 42. Now\n{ULM}\n{OSLO}{EOS}")
    events = await run(engine)
    reply = accumulator(engine, hidden)
    text, calls = read(reply, events)
    flush = "" if hidden else f"<tool_call>{SEEN}"
    assert text == f"I compute.\n{BLOCK}{flush}It is 42. Now"
    assert calls == [("weather", '{"city": "Ulm"}'), ("weather", '{"city": "Oslo"}')]
    assert events[-1] == Finished(Outcome.CALL)
    assert [tool.output for tool in reply.executed] == ["42"]
    assert reply.text == f"I compute.\n{BLOCK}<tool_call>{SEEN}It is 42. Now\n{ULM}\n{OSLO}"
    assert engine.tokenizer.decode(reply.ids) == reply.text
    assert (reply.finished_calls, reply.final_answer) == (2, None)


async def test_engine_continues_after_the_tag_from_the_sampled_tokens() -> None:
    engine = ResumingEngine(f"Now {ULM}{EOS}")
    await run(engine, seed=5)
    (first, one), (second, two) = engine.calls
    assert engine.tokenizer.decode(second[len(first) :]) == "Now <tool_call>"
    assert one.seed != two.seed
    assert one.max_tokens - two.max_tokens == len("Now ") + 1


async def test_a_tag_that_begins_no_call_is_text() -> None:
    engine = ResumingEngine(f"A <tool_call> is a tag. {ULM}{EOS}")
    text, calls = read(accumulator(engine, "<tool_call>"), await run(engine))
    assert text == "A <tool_call> is a tag."
    assert [name for name, _ in calls] == ["weather"]


@pytest.mark.parametrize(
    "written",
    [
        '<tool_call>{"name": "rain", "arguments": {}}</tool_call>',
        "I look.\n\n<tool_call>\n",
        '<tool_call>{"name": "weather", "arguments": {"city": }}</tool_call> and more',
        '<tool_call>{"name": "weather", "arguments": {"city": "Ulm',
        '<tool_call>{"name": "weather", "arguments": {"city": "U\nlm"}}</tool_call>',
    ],
)
async def test_unparsable_call_is_text_and_the_episode_continues(written: str) -> None:
    for after, count in ((f"\n{ULM}", 1), ("", 0)):
        engine = ResumingEngine(written + after + EOS)
        text, calls = read(accumulator(engine), await run(engine))
        if count and written.endswith('"Ulm'):
            continue  # the second tag is part of the open string
        assert text.rstrip() == written.rstrip()
        assert len(calls) == count


async def test_code_runs_after_a_broken_call() -> None:
    engine = ResumingEngine(f"<tool_call>\n{{oops\n{BLOCK}<tool_call>", f"So 42.{EOS}")
    reply = accumulator(engine)
    text, calls = read(reply, await run(engine))
    assert text == f"<tool_call>\n{{oops\n{BLOCK}<tool_call>{SEEN}So 42."
    assert (calls, len(reply.executed)) == ([], 1)


async def test_limit_at_the_tag_and_in_the_call() -> None:
    for limit in (len("Now ") + 1, len("Now ") + 30):
        engine = ResumingEngine(f"Now {ULM}{EOS}")
        events = await run(engine, max_tokens=limit)
        assert events[-1] == Finished(Outcome.LENGTH)
        assert sum(len(event.chunk.ids) for event in events if isinstance(event, Sampled)) == limit


async def test_stop_string_before_a_call() -> None:
    engine = ResumingEngine(f"Now stop {ULM}{EOS}")
    events = await run(engine, stop=["stop"])
    assert read(accumulator(engine), events) == ("Now ", [])
    assert len(engine.calls) == 1


async def test_stop_string_that_holds_back_the_tag() -> None:
    engine = ResumingEngine(f"Now {ULM}{EOS}")
    events = await run(engine, stop=["<tool_call>\nx"])
    assert read(accumulator(engine), events) == ("Now", [("weather", '{"city": "Ulm"}')])


async def test_single_call() -> None:
    engine = ResumingEngine(f"{ULM}{OSLO}{EOS}")
    events = await run(engine, parallel=False)
    assert read(accumulator(engine), events)[1] == [("weather", '{"city": "Ulm"}')]
    assert engine.open_streams == 0


async def test_immediate_mode_does_not_stop_the_engine_at_the_tag() -> None:
    policy = DeferralPolicy(mode="immediate", unflushed="run", answer="any", observation="output_block")
    engine = ResumingEngine(BLOCK, f"Now {ULM}{EOS}")
    events = await run(engine, policy=policy)
    assert len(engine.calls) == 2
    text, calls = read(accumulator(engine, "<tool_call>"), events)
    assert text == f"{BLOCK}Now"
    assert calls == [("weather", '{"city": "Ulm"}')]
    assert [event.text for event in events if isinstance(event, Observed)] == ["\n```output\n42\n```\n"]


def test_chunk_is_cut_where_calls_begin_and_end() -> None:
    chunk = TokenChunk((7, 8), "a<tool_call>{}</tool_call>b", (-1.0, -2.0))
    edges = [CallEdge(12, opens=True), CallEdge(26, opens=False)]
    events = list(_cut_at_calls(chunk, edges))
    assert events == [
        Sampled(TokenChunk((), "a<tool_call>", ())),
        CallOpened(),
        Sampled(TokenChunk((), "{}</tool_call>", ())),
        CallClosed(),
        Sampled(chunk._replace(text="b")),
    ]
    ends = chunk._replace(text="</tool_call>")
    assert list(_cut_at_calls(ends, [CallEdge(12, opens=False)])) == [Sampled(ends), CallClosed()]
    starts = list(_cut_at_calls(ends, [CallEdge(0, opens=False)]))
    assert starts == [CallClosed(), Sampled(ends)]


PIECES = [
    BLOCK, ULM, OSLO, "<tool_call>", "</tool_call>", "\n", " text ", "{", '"', "x", "```json\n",
    '<tool_call>{"name": "rain", "arguments": {}}</tool_call>',
]  # fmt: skip


class ChunkedEngine(ResumingEngine):
    """An engine with ``size`` tokens per chunk, in which a stop token is the last one."""

    def __init__(self, size: int, *turns: str) -> None:
        super().__init__(*turns)
        self._size = size

    async def generate(self, prompt_ids, sampling, stop_token_ids=()):  # type: ignore[no-untyped-def]
        waiting: list[TokenChunk] = []
        async for chunk in super().generate(prompt_ids, sampling, stop_token_ids):
            waiting.append(chunk)
            if len(waiting) == self._size or chunk.finish_reason is not None:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)


def _joined(chunks: list[TokenChunk]) -> TokenChunk:
    return TokenChunk(
        tuple(token for chunk in chunks for token in chunk.ids),
        "".join(chunk.text for chunk in chunks),
        tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        finish_reason=chunks[-1].finish_reason,
    )


@given(
    st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), min_size=1, max_size=3),
    st.sampled_from([None, "<tool_call>"]),
)
async def test_reply_does_not_depend_on_the_chunks_and_loses_nothing(
    turns: list[str], hidden: str | None
) -> None:
    results = []
    for size in (1, 2, 7):
        engine = ChunkedEngine(size, *(turn + EOS for turn in turns))
        events = await run(engine)
        reply = accumulator(engine, hidden)
        text, calls = read(reply, events)
        assert engine.tokenizer.decode(reply.ids) == reply.text
        assert all(json.loads(arguments).keys() == {"city"} for _, arguments in calls)
        assert len(calls) == reply.finished_calls
        ids = [token for event in events if isinstance(event, Sampled) for token in event.chunk.ids]
        assert len(ids) == reply.sampled_tokens
        results.append((text, calls, reply.text, len(reply.executed), reply.outcome))
    assert results[0] == results[1] == results[2]
