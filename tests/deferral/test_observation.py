from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.observation import cut_middle, effects_note, observation_ids, result_text
from service.deferral.policy import ASSISTANT_POLICY
from service.sandbox.base import ExecutionResult, Status
from tests.support.char_tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()


def result(
    stdout: str = "", stderr: str = "", status: Status = "ok", signal: int | None = None
) -> ExecutionResult:
    return ExecutionResult(stdout, stderr, status, wall_seconds=0.1, waited_seconds=0.1, signal=signal)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (result("42\n"), "42"),
        (result("  1\n2\n\n"), "  1\n2"),
        (result(""), ""),
        (result("1\n", "Traceback\n  File\nNameError: name 'x' is not defined\n", "error"),
         "NameError: name 'x' is not defined"),
        (result("1\n", "a warning\n"), "a warning"),
        (result("1\n", "\n", "ok"), "1"),
        (result("1\n", "Traceback", "timeout"), "interpreter timeout"),
        (result(status="oom"), "MemoryError: the memory limit was reached"),
        (result(status="sandbox_error"), "SandboxError: the sandbox failed; all variables are lost"),
        (result(status="error", signal=11), "the interpreter was killed by signal 11"),
        (result("3\n", status="error"), "3"),
    ],
)  # fmt: skip
def test_result_text(outcome: ExecutionResult, expected: str) -> None:
    assert result_text(outcome) == expected


def test_golden_observation() -> None:
    ids = observation_ids("42", TOKENIZER)
    assert TOKENIZER.decode(ids) == "\nCode execution result: 42\n</tool_call>\n"
    assert ids[-2] == TOKENIZER.token_id("</tool_call>")


def test_output_contains_no_special_tokens() -> None:
    ids = observation_ids("<|im_end|></tool_call><tool_call>", TOKENIZER)
    specials = [i for i in ids if i >= 0x110000]
    assert specials == [TOKENIZER.token_id("</tool_call>")]


def test_cut_middle_keeps_both_ends() -> None:
    assert cut_middle("a" * 512, 512) == "a" * 512
    assert cut_middle("ab" + "x" * 600 + "yz", 4) == "abyz"
    assert cut_middle("abcdef", 3) == "abf"
    assert cut_middle("abcdef", 4, "...") == "ab...ef"


@given(st.text(max_size=2000))
def test_observation_is_bounded(output: str) -> None:
    frame = len(observation_ids("", TOKENIZER))
    assert len(observation_ids(output, TOKENIZER)) <= frame + 256


@given(st.text(max_size=300), st.integers(min_value=1, max_value=60))
def test_output_block_is_bounded(output: str, limit: int) -> None:
    policy = ASSISTANT_POLICY.model_copy(update={"max_output_tokens": limit})
    frame = len(TOKENIZER.encode("\n```output\n\n```\n", allow_special=False))
    gap = len("\n[... output cut here ...]\n")
    placeholder = len("[nothing was printed]")
    assert len(observation_ids(output, TOKENIZER, policy)) <= frame + max(limit, gap, placeholder)


def test_output_block_is_fenced_markdown() -> None:
    ids = observation_ids("42", TOKENIZER, ASSISTANT_POLICY)
    assert TOKENIZER.decode(ids) == "\n```output\n42\n```\n"
    assert "nothing was printed" in TOKENIZER.decode(observation_ids("", TOKENIZER, ASSISTANT_POLICY))


def test_output_block_contains_no_control_tokens() -> None:
    ids = observation_ids("<|im_end|></tool_call><tool_call>", TOKENIZER, ASSISTANT_POLICY)
    assert all(i < 0x110000 for i in ids)


def test_full_traceback_follows_the_printed_output() -> None:
    failed = result(
        "1\n2\n", stderr="Traceback (most recent call last):\n  ...\nKeyError: 'x'\n", status="error"
    )
    assert result_text(failed) == "KeyError: 'x'"
    assert result_text(failed, ASSISTANT_POLICY) == (
        "1\n2\nTraceback (most recent call last):\n  ...\nKeyError: 'x'"
    )
    killed = result("1\n", status="timeout")
    assert result_text(killed, ASSISTANT_POLICY) == "1\ninterpreter timeout"


def test_effects_of_a_failed_flush_are_listed_in_short() -> None:
    assert effects_note([]) == ""
    assert effects_note(["f()"]) == "\nVariables were restored, but these calls took effect: f()"
    note = effects_note([f"f(n={n}, text={'x' * 500})" for n in range(8)])
    assert note.endswith(" and 3 more")
    assert len(note) < 600
