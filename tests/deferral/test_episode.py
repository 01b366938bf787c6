from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.deferral.episode import Episode, Flush, Invocation, Outcome, Transcript, delayed_calls
from service.deferral.policy import DeferralPolicy
from service.sandbox.base import ExecutionResult
from tests.support.char_tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
MARKER = TOKENIZER.token_id("<tool_call>")
assert MARKER is not None
PROMPT = [ord(char) for char in "2+2?"]
BLOCK = "```python\nx = 1\n```"


EOS = "<|im_end|>"
EOS_ID = TOKENIZER.token_id(EOS)
assert EOS_ID is not None
COMPUTE = "```python\nprint(1)\n```"


def make(*, code_is_answer: bool = False, in_thought: bool = False, **policy: Any) -> Episode:
    return Episode(
        PROMPT,
        DeferralPolicy(**policy),
        TOKENIZER,
        MARKER,
        endings={EOS_ID: EOS},
        code_is_answer=code_is_answer,
        in_thought=in_thought,
    )


def write(episode: Episode, text: str, *, hit_length: bool = False) -> Flush | None:
    """Feed a turn token by token, as an engine does, and end it."""
    for token in TOKENIZER.encode(text, allow_special=True):
        episode.feed([token], TOKENIZER.decode([token]), [-0.5])
        if episode.turn_over:
            break
    return episode.end_turn(hit_length=hit_length)


def result(stdout: str) -> ExecutionResult:
    return ExecutionResult(stdout, "", "ok", wall_seconds=0.0, waited_seconds=0.0)


def test_blocks_run_at_the_marker_and_are_observed() -> None:
    episode = make()
    flush = write(episode, f"Let\n{BLOCK}\nso\n```py\nprint(x)\n```<tool_call>never read")
    assert flush is not None
    assert [block.code for block in flush.blocks] == ["x = 1", "print(x)"]
    assert flush.delayed == 1
    assert episode.outcome is None
    observation = episode.observe(result("1\n"))
    assert observation.text == "\nCode execution result: 1\n</tool_call>\n"
    assert write(episode, "It is \\boxed{1}") is None
    assert episode.outcome is Outcome.ANSWER
    assert episode.answer == "1"
    assert episode.turn == 2


def test_invocation_records_the_token_of_its_closing_fence() -> None:
    episode = make()
    text = f"a\n{BLOCK}"
    assert episode.feed([1] * 7, text, [0.0] * 7) == [Invocation("x = 1", at_token=7)]


def test_keeps_sampled_tokens_and_masks_observations() -> None:
    episode = make()
    write(episode, f"{BLOCK}<tool_call>")
    written = len(episode.transcript.ids)
    observation = episode.observe(result("1"))
    write(episode, "ok")
    transcript = episode.transcript
    assert transcript.mask == [1] * written + [0] * len(observation.ids) + [1, 1]
    assert transcript.ids[written : written + len(observation.ids)] == list(observation.ids)
    assert transcript.context_ids[: len(PROMPT)] == PROMPT
    assert TOKENIZER.decode(transcript.ids) == transcript.text


def test_an_empty_flush_counts_as_a_turn() -> None:
    episode = make()
    flush = write(episode, "hm <tool_call>")
    assert flush == Flush((), 0)
    assert "no code is pending" in episode.observe(None).text
    assert (episode.turn, episode.outcome) == (2, None)


def test_a_block_is_flushed_once() -> None:
    episode = make()
    write(episode, f"{BLOCK}<tool_call>")
    episode.observe(result(""))
    assert write(episode, "again <tool_call>") == Flush((), 0)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("The answer is \\boxed{4}", Outcome.ANSWER),
        (f"{BLOCK}\nso \\boxed{{4}}", Outcome.ANSWER),
        (f"\\boxed{{4}} or\n{BLOCK}\n", Outcome.VOID),
        ("no box", Outcome.VOID),
        (BLOCK, Outcome.VOID),
        ("\\boxed{}", Outcome.VOID),
        ("\\boxed{4} <tool_call>", Outcome.ANSWER),
    ],
)
def test_outcome_of_a_turn_without_a_flush(text: str, outcome: Outcome) -> None:
    episode = make()
    assert write(episode, text) is None
    assert episode.outcome is outcome


def test_a_marker_inside_an_open_fence_loses_that_block() -> None:
    flush = write(make(), f"{BLOCK}\nthen\n```python\ny = 2<tool_call>")
    assert flush is not None
    assert [block.code for block in flush.blocks] == ["x = 1"]


def test_a_box_in_the_output_ends_the_episode() -> None:
    episode = make()
    write(episode, f"{BLOCK}<tool_call>")
    episode.observe(result("\\boxed{4}\n"))
    assert episode.outcome is Outcome.BOXED_OUTPUT
    assert episode.answer == "4"
    assert not episode.outcome.is_void


def test_the_last_turn_has_no_flush() -> None:
    episode = make(max_turns=2)
    assert write(episode, f"{BLOCK}<tool_call>") is not None
    episode.observe(result(""))
    assert write(episode, f"{BLOCK}<tool_call>") is None
    assert episode.outcome is Outcome.TURN_LIMIT
    assert episode.outcome.is_void
    assert episode.outcome.is_truncated


def test_the_engines_length_limit_ends_the_episode() -> None:
    episode = make()
    assert write(episode, "so long", hit_length=True) is None
    assert episode.outcome is Outcome.LENGTH


def test_an_observation_over_the_budget_ends_the_episode() -> None:
    episode = make(max_turn_tokens=50, max_episode_tokens=50)
    assert episode.turn_budget() == 46
    write(episode, f"{BLOCK}<tool_call>")
    assert episode.turn_budget() == 50 - len(PROMPT) - len(BLOCK) - 1
    observation = episode.observe(result("1"))
    assert observation.ids == ()
    assert observation.output == "1"
    assert episode.outcome is Outcome.LENGTH


def test_a_prompt_that_fills_the_budget_ends_the_episode() -> None:
    episode = make(max_episode_tokens=len(PROMPT))
    assert episode.turn_budget() == 0
    assert episode.finish() is Outcome.LENGTH


def test_immediate_mode_flushes_at_every_block() -> None:
    episode = make(mode="immediate")
    flush = write(episode, f"a\n{BLOCK}\nnever read")
    assert flush is not None
    assert flush.delayed == 0
    assert episode.transcript.text == f"a\n{BLOCK}"


@given(st.data())
def test_result_does_not_depend_on_chunks(data: st.DataObject) -> None:
    pieces = st.sampled_from(["text ", f"\n{BLOCK}\n", "\\boxed{1}", "\n```python\n", "é"])
    ids = TOKENIZER.encode(
        "".join(data.draw(st.lists(pieces, max_size=8))) + "<tool_call>", allow_special=True
    )
    whole, cut = make(), make()
    whole.feed(ids, TOKENIZER.decode(ids), [0.0] * len(ids))
    while ids:
        size = data.draw(st.integers(1, len(ids)))
        cut.feed(ids[:size], TOKENIZER.decode(ids[:size]), [0.0] * size)
        ids = ids[size:]

    def outcome(episode: Episode) -> object:
        flush = episode.end_turn()
        codes = flush and [block.code for block in flush.blocks]
        return codes, flush and flush.delayed, episode.outcome, episode.transcript.ids, episode.turn_over

    assert outcome(whole) == outcome(cut)


def test_run_flushes_pending_blocks_at_the_end_of_a_turn() -> None:
    episode = make(unflushed="run")
    flush = write(episode, f"So\n{COMPUTE}\n{EOS}")
    assert flush is not None
    assert (flush.requested_by, flush.delayed) == ("server", 0)
    assert [block.code for block in flush.blocks] == ["print(1)"]
    # The end token is removed and recorded; the marker that the model did not write is inserted.
    assert episode.transcript.text == f"So\n{COMPUTE}\n"
    assert episode.transcript.dropped_ends == [(len(f"So\n{COMPUTE}\n"), EOS_ID, -0.5)]
    observation = episode.observe(result("1\n"), requested_by=flush.requested_by)
    assert observation.ids[0] == MARKER
    assert observation.text == "<tool_call>\nCode execution result: 1\n</tool_call>\n"
    assert sum(episode.transcript.mask) == len(f"So\n{COMPUTE}\n")
    assert len(episode.transcript.ids) == len(episode.transcript.mask) == len(episode.transcript.logprobs)
    assert write(episode, f"It is \\boxed{{1}}{EOS}") is None
    assert episode.outcome is Outcome.ANSWER


def test_drop_ends_with_a_void_turn() -> None:
    episode = make()
    assert write(episode, f"So\n{COMPUTE}\n{EOS}") is None
    assert episode.outcome is Outcome.VOID
    assert [block.code for block in episode.pending] == ["print(1)"]
    assert episode.transcript.ids[-1] == EOS_ID


def test_an_answer_after_pending_code_ends_the_episode_even_if_unflushed_code_runs() -> None:
    episode = make(unflushed="run")
    assert write(episode, f"{COMPUTE}\nso \\boxed{{1}}{EOS}") is None
    assert episode.outcome is Outcome.ANSWER


def test_run_flushes_nothing_in_the_last_turn() -> None:
    episode = make(unflushed="run", max_turns=1)
    assert write(episode, f"{COMPUTE}\n{EOS}") is None
    assert episode.outcome is Outcome.TURN_LIMIT


def test_run_flushes_nothing_at_a_length_limit() -> None:
    episode = make(unflushed="run")
    assert write(episode, f"{COMPUTE}\nand", hit_length=True) is None
    assert episode.outcome is Outcome.LENGTH


def test_code_that_is_the_answer_is_not_run_by_the_server() -> None:
    episode = make(unflushed="run", answer="any", code_is_answer=True)
    assert write(episode, f"{COMPUTE}\n{EOS}") is None
    assert episode.outcome is Outcome.ANSWER
    immediate = make(unflushed="run", answer="any", mode="immediate", code_is_answer=True)
    assert write(immediate, f"{COMPUTE}\nThat prints 1.{EOS}") is None
    assert immediate.outcome is Outcome.ANSWER


def test_code_that_is_the_answer_runs_if_the_model_writes_the_marker() -> None:
    episode = make(unflushed="run", answer="any", code_is_answer=True)
    flush = write(episode, f"{COMPUTE}<tool_call>")
    assert flush is not None
    assert flush.requested_by == "model"
    assert len(flush.blocks) == 1


@pytest.mark.parametrize("mode", ["deferred", "immediate"])
@pytest.mark.parametrize("opened_by_prompt", [False, True])
def test_code_in_a_thought_is_not_run_by_the_server(mode: str, opened_by_prompt: bool) -> None:
    begin = "" if opened_by_prompt else "<think>\n"
    episode = make(unflushed="run", answer="any", mode=mode, in_thought=opened_by_prompt)
    assert write(episode, f"{begin}maybe\n{COMPUTE}\n</think>\nNo code needed.{EOS}") is None
    assert episode.outcome is Outcome.ANSWER
    episode = make(unflushed="run", answer="any", mode=mode, in_thought=opened_by_prompt)
    flush = write(episode, f"{begin}maybe\n{COMPUTE}\n</think>\nSo\n```python\nprint(2)\n```{EOS}")
    assert flush is not None
    assert [block.code for block in flush.blocks] == ["print(2)"]


def test_the_models_own_marker_runs_code_in_a_thought() -> None:
    episode = make(unflushed="run")
    flush = write(episode, f"<think>\n{COMPUTE}<tool_call>")
    assert flush is not None
    assert [block.code for block in flush.blocks] == ["print(1)"]


def test_a_definition_runs_only_together_with_a_later_block() -> None:
    define = "```python\ndef f():\n    return 1\n```"
    episode = make(unflushed="run", answer="any", mode="immediate")
    assert write(episode, f"Like this:\n{define}\nThat is all.{EOS}") is None
    assert episode.outcome is Outcome.ANSWER
    episode = make(unflushed="run", answer="any", mode="immediate")
    flush = write(episode, f"First\n{define}\nthen\n```python\nprint(f())\n```")
    assert flush is not None
    assert [block.code for block in flush.blocks] == ["def f():\n    return 1", "print(f())"]


def test_the_server_does_not_run_a_successful_block_again() -> None:
    episode = make(unflushed="run", answer="any", mode="immediate")
    assert write(episode, COMPUTE) is not None
    episode.observe(result("1\n"), requested_by="server")
    assert write(episode, f"{COMPUTE}\nAs I said.{EOS}") is None
    assert episode.outcome is Outcome.ANSWER


def test_the_server_runs_a_failed_block_again() -> None:
    episode = make(unflushed="run", answer="any", mode="immediate")
    assert write(episode, "```python\nprint(f(3))\n```") is not None
    failed = ExecutionResult("", "NameError: f", "error", wall_seconds=0.0, waited_seconds=0.0)
    episode.observe(failed, requested_by="server")
    flush = write(episode, "```python\ndef f(x):\n    return x\n```\nand\n```python\nprint(f(3))\n```")
    assert flush is not None
    assert [block.code for block in flush.blocks] == ["def f(x):\n    return x", "print(f(3))"]


def test_output_does_not_end_a_thought() -> None:
    episode = make(unflushed="run", answer="any")
    assert write(episode, f"<think>\n{COMPUTE}<tool_call>") is not None
    episode.observe(result("</think>\n"))  # printed by code, so it does not end the thought
    assert write(episode, f"{BLOCK}\n</think>\nDone.{EOS}") is None
    assert episode.outcome is Outcome.ANSWER


def test_a_chunk_may_close_a_block_and_a_thought() -> None:
    episode = make(unflushed="run", answer="any", mode="immediate", in_thought=True)
    episode.feed([1] * 5, f"so\n{COMPUTE}\n</think>\nNo.", [0.0] * 5)
    assert not episode.turn_over


def test_drop_runs_code_in_a_thought() -> None:
    episode = make(mode="immediate")
    assert write(episode, f"<think>\n{COMPUTE}") is not None


def test_the_server_runs_a_lost_block_again() -> None:
    episode = make(unflushed="run", answer="any", mode="immediate")
    assert write(episode, COMPUTE) is not None
    lost = ExecutionResult("", "", "sandbox_error", wall_seconds=0.0, waited_seconds=0.0)
    episode.observe(lost, requested_by="server")
    assert write(episode, COMPUTE) is not None


def test_with_any_answer_a_box_does_not_end_the_episode() -> None:
    episode = make(unflushed="run", answer="any")
    flush = write(episode, f"{COMPUTE}\nThis prints \\boxed{{7}}{EOS}")
    assert flush is not None  # the real output replaces the invented one
    episode.observe(result("\\boxed{1}\n"), requested_by="server")
    assert episode.outcome is None
    assert write(episode, f"It is 1.{EOS}") is None
    assert episode.outcome is Outcome.ANSWER


def seen_by_model(flush: Flush | None) -> tuple[list[str], int, str] | None:
    """The parts of a flush that determine the observation."""
    return flush and ([block.code for block in flush.blocks], flush.delayed, flush.requested_by)


@given(
    st.lists(
        st.sampled_from([COMPUTE, BLOCK, "\n", "text ", "<tool_call>", "<think>", "</think>", EOS]),
        max_size=12,
    )
)
@example(["<think>", "\n", BLOCK, "<tool_call>"])
def test_run_equals_drop_for_a_model_that_flushes(pieces: list[str]) -> None:
    """Up to the first server flush, ``drop`` and ``run`` agree on every token."""
    text = "".join(pieces)
    dropped, ran = make(), make(unflushed="run")
    first, second = write(dropped, text), write(ran, text)
    if second is None or second.requested_by == "model":
        assert seen_by_model(first) == seen_by_model(second)
        assert dropped.transcript.ids == ran.transcript.ids
        assert dropped.outcome == ran.outcome
    else:
        assert first is None
        assert dropped.outcome is Outcome.VOID


def test_transcript_lists_stay_aligned() -> None:
    transcript = Transcript([1, 2])
    transcript.add_sampled([3, 4], "ab", [-0.1, -0.2], version=7)
    transcript.add_observation([5], "c")
    assert transcript.context_ids == [1, 2, 3, 4, 5]
    assert transcript.mask == [1, 1, 0]
    assert transcript.logprobs == [-0.1, -0.2, 0.0]
    assert transcript.versions == [7, 7, 0]
    assert transcript.text == "abc"
    assert (transcript.sampled_tokens, transcript.observation_tokens) == (2, 1)


def test_transcript_rejects_a_missing_logprob() -> None:
    with pytest.raises(ValueError, match="2 ids but 1 logprobs"):
        Transcript([]).add_sampled([1, 2], "ab", [-0.1])


@pytest.mark.parametrize(
    ("codes", "gaps", "expected"),
    [
        ([], [], 0),
        (["x = 1"], [], 0),
        (["x = 1", "print(x)"], ["then"], 1),
        (["x = 1", "y = x + 1", "print(y)"], ["then", "and"], 2),
        (["x = 1", "y = 2"], ["\n\n"], 0),
        (["x = 1", ""], ["then"], 0),
        (["x = 1", "# only x\nprint(x)"], ["then"], 1),
        (["x = 1", "x = 1\nprint(x)"], ["then"], 0),
        (["x = 1\ny = 2", "y = 2  "], ["then"], 0),
        (["x = 1", "x = 1\ny = 2"], ["then"], 0),
        (["print(1)", "x = 1\nprint(x)"], ["then"], 1),
        (["x = 1", "y = 2", "x = 1\ny = 2"], ["a", "b"], 0),
    ],
)
def test_delayed_calls(codes: list[str], gaps: list[str], expected: int) -> None:
    assert delayed_calls(codes, gaps) == expected
