"""Functions of the client beside code: the meaning of the marker, and what code runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.deferral.episode import CallEdge, Episode, Flush, Outcome
from service.deferral.policy import ASSISTANT_POLICY, DeferralPolicy
from service.sandbox.base import ExecutionResult
from tests.support.char_tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
MARKER, EOS = "<tool_call>", "<|im_end|>"
MARKER_ID, EOS_ID = TOKENIZER.token_id(MARKER), TOKENIZER.token_id(EOS)
assert MARKER_ID is not None
assert EOS_ID is not None
ENDINGS = {EOS_ID: EOS}
BLOCK = "```python\nprint(1)\n```"
DEFINES = "```python\ndef f():\n    return 1\n```"
ARGUMENTS = {"code": "a\n```python\nx\n```"}
CALL = f"{MARKER}\n{json.dumps({'name': 'f', 'arguments': ARGUMENTS})}\n</tool_call>"
IMMEDIATE = DeferralPolicy(mode="immediate", unflushed="run", answer="any")


def make(policy: DeferralPolicy | None = None, *, functions: Any = ("f", "g"), **options: Any) -> Episode:
    return Episode(
        [1, 2], policy or DeferralPolicy(), TOKENIZER, MARKER_ID or 0, endings=ENDINGS,
        functions=functions, **options,
    )  # fmt: skip


def write(episode: Episode, text: str) -> Flush | None:
    """Feed one turn token by token, and end it."""
    for token in TOKENIZER.encode(text, allow_special=True):
        episode.feed([token], TOKENIZER.decode([token]), [-0.5])
        if episode.turn_over:
            break
    return episode.end_turn()


def codes(flush: Flush | None) -> list[str] | None:
    return None if flush is None else [block.code for block in flush.blocks]


def observe(episode: Episode, requested_by: Any = "model") -> None:
    result = ExecutionResult("1", "", "ok", wall_seconds=0.0, waited_seconds=0.0)
    episode.observe(result, requested_by=requested_by)


def test_marker_with_a_pending_block_is_a_flush() -> None:
    episode = make()
    flush = write(episode, f"I compute.\n{BLOCK}{CALL}{EOS}")
    assert codes(flush) == ["print(1)"]
    assert episode.transcript.text.endswith(MARKER)  # nothing after the marker was read
    observe(episode)
    assert write(episode, f"Now I call. {CALL}{EOS}") is None
    assert episode.outcome is Outcome.CALL


def test_marker_with_no_pending_block_begins_a_call() -> None:
    episode = make()
    assert write(episode, f"I call.\n{CALL}\n{CALL}{EOS}") is None
    assert (episode.outcome, episode.turn) == (Outcome.CALL, 1)
    assert episode.pending == ()  # the fence in the arguments does not count
    assert not Outcome.CALL.is_truncated


@pytest.mark.parametrize(
    "text", [f"hm {MARKER}\nCode execution result: 3\n", f"hm {MARKER}{MARKER}\n\n", f"{MARKER}{{x`\n"]
)
def test_marker_that_begins_no_call_leaves_the_protocol_intact(text: str) -> None:
    episode = make()
    assert codes(write(episode, f"{text}{BLOCK}{MARKER}")) == ["print(1)"]
    observe(episode)
    assert write(episode, f"It is \\boxed{{1}}.{EOS}") is None
    assert episode.outcome is Outcome.ANSWER


def test_call_of_an_unknown_function_is_text() -> None:
    episode = make(IMMEDIATE)
    call = f'{MARKER}\n{{"name": "h", "arguments": {{}}}}\n</tool_call>\n'
    assert codes(write(episode, call + BLOCK)) == ["print(1)"]


@pytest.mark.parametrize("policy", [IMMEDIATE, ASSISTANT_POLICY])
def test_blocks_run_as_they_close_and_the_tag_always_begins_a_call(policy: DeferralPolicy) -> None:
    episode = make(policy)
    assert not episode.marker_flushes
    assert codes(write(episode, f"First\n{BLOCK}\n{CALL}")) == ["print(1)"]
    observe(episode, "server")
    # A block that shows nothing is not run alone, and does not keep the model from calling.
    assert write(episode, f"{DEFINES}\n{CALL}{EOS}") is None
    assert episode.outcome is Outcome.CALL


def test_server_runs_no_code_after_a_call() -> None:
    for policy in (IMMEDIATE, DeferralPolicy(unflushed="run")):
        episode = make(policy)
        assert write(episode, f"{CALL}\n{BLOCK}\n{EOS}") is None
        assert episode.outcome is Outcome.CALL


def test_model_may_run_code_after_a_call() -> None:
    episode = make()
    assert codes(write(episode, f"{CALL}\nand\n{BLOCK}{MARKER}")) == ["print(1)"]
    observe(episode)
    assert write(episode, f"Done.{EOS}") is None
    assert episode.outcome is Outcome.CALL


def test_single_call_ends_the_turn() -> None:
    episode = make(parallel_calls=False)
    assert write(episode, CALL + CALL + EOS) is None
    assert episode.outcome is Outcome.CALL
    assert episode.transcript.text == CALL


def test_limit_in_a_call() -> None:
    episode = make()
    text = CALL + CALL[:20]
    for token in TOKENIZER.encode(text, allow_special=True):
        episode.feed([token], TOKENIZER.decode([token]), [-0.5])
    assert episode.end_turn(hit_length=True) is None
    assert episode.outcome is Outcome.LENGTH


def test_thought_contains_no_call() -> None:
    episode = make(IMMEDIATE, in_thought=True)
    episode.feed([1], "I could write <tool_call>", [0.0])
    assert episode.call_edges == []
    episode.feed([1], " here.</think>\nI call <tool_call>", [0.0])
    assert episode.call_edges == [CallEdge(len(" here.</think>\nI call <tool_call>"), opens=True)]


def test_edges_are_offsets_in_the_fed_text() -> None:
    episode = make()
    episode.feed([1] * 9, "ab<tool_", [0.0] * 9)
    assert episode.call_edges == []
    episode.feed([1] * 9, 'call>{"name": "f"}</tool_call> c', [0.0] * 9)
    assert episode.call_edges == [CallEdge(5, opens=True), CallEdge(30, opens=False)]


def test_token_in_an_open_fence_begins_a_call() -> None:
    for fence in ("```json\n", "```python\n"):
        episode = make()
        assert write(episode, f"{fence}{CALL}\n```\n{EOS}") is None
        assert episode.outcome is Outcome.CALL
    assert codes(write(make(), f"{BLOCK}\n```json\n{CALL}")) == ["print(1)"]


def test_another_marker_keeps_its_meaning() -> None:
    episode = make(DeferralPolicy(marker="<|im_end|>"))  # any token of this small vocabulary
    episode.marker_id = EOS_ID or 0
    assert write(episode, CALL) is None
    assert episode.outcome is Outcome.CALL
    episode = make(DeferralPolicy(marker="<|im_end|>"))
    episode.marker_id = EOS_ID or 0
    assert codes(write(episode, f"{BLOCK}{EOS}")) == ["print(1)"]


PIECES = [
    BLOCK, DEFINES, CALL, MARKER, "</tool_call>", "\n", "text ", "<think>", "</think>", "```json\n", "{", '"',
    "\\boxed{1}", EOS,
]  # fmt: skip
POLICIES = st.builds(
    DeferralPolicy,
    mode=st.sampled_from(["deferred", "immediate"]),
    unflushed=st.sampled_from(["drop", "run"]),
    answer=st.sampled_from(["boxed", "any"]),
)


def played(episode: Episode, text: str) -> list[object]:
    """Everything that an episode makes of ``text``, turn by turn."""
    found: list[object] = []
    ids = TOKENIZER.encode(text, allow_special=True)
    while ids and episode.outcome is None:
        while ids and not episode.turn_over:
            token = ids.pop(0)
            found += episode.feed([token], TOKENIZER.decode([token]), [-0.5])
            if token == EOS_ID:
                break
        flush = episode.end_turn()
        found.append(flush)
        if flush is not None:
            observe(episode, flush.requested_by)
    return [*found, episode.outcome, episode.transcript.ids, episode.transcript.text]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), POLICIES)
@example(f"{CALL}{BLOCK}{MARKER}", DeferralPolicy())
def test_functions_change_nothing_up_to_the_first_call_tag_without_pending_code(
    text: str, policy: DeferralPolicy
) -> None:
    with_functions = make(policy)
    result = played(with_functions, text)
    if not _begins_call(text, policy):
        assert result == played(make(policy, functions=()), text)


def _begins_call(text: str, policy: DeferralPolicy) -> bool:
    """Whether any tag in ``text`` comes with no block pending, fed as one stream of turns."""
    episode = make(policy, functions=())
    ids = TOKENIZER.encode(text, allow_special=True)
    while ids and episode.outcome is None:
        while ids and not episode.turn_over:
            token = ids.pop(0)
            if token == MARKER_ID and (not episode.pending or policy.mode == "immediate"):
                return True
            episode.feed([token], TOKENIZER.decode([token]), [-0.5])
            if token == EOS_ID:
                break
        flush = episode.end_turn()
        if flush is not None:
            observe(episode, flush.requested_by)
    return False


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.data(), POLICIES)
def test_edges_do_not_depend_on_chunks(text: str, data: st.DataObject, policy: DeferralPolicy) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    whole, cut = make(policy), make(policy)
    whole.feed([], text, [])
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        cut.feed([], text[start:end], [])
        found += [CallEdge(start + edge.at, opens=edge.opens) for edge in cut.call_edges]
    assert found == whole.call_edges
    assert [edge.opens for edge in found] == [i % 2 == 0 for i in range(len(found))]
    assert cut.pending == whole.pending
    assert cut.turn_over == whole.turn_over
