from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.layouts import LayoutError, ReadRow, read_row
from trainer.rewards.choice import LETTERS, gold_choice

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": " 1+1? "}
OPTIONS = "Capital?\n\n(A) Paris\n(B) Rome\n\nAnswer with the letter of the correct option."


@pytest.mark.parametrize(
    "row",
    [
        {"question": "1+1?", "answer": "2"},
        {"problem": " 1+1? ", "answer": 2, "level": 3},
        {"query": "1+1?", "gold": "2"},
        {"input": "1+1?", "target": "2"},
        {"prompt": "1+1?", "solution": r"1+1 is \boxed{2}."},
        {"prompt": "1+1?", "ground_truth": "2"},
        {"prompt": [USER], "answer": "2"},
        {
            "prompt": [USER],
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "answer": "9",
            "input": "x",
        },
        {"messages": [USER, {"role": "assistant", "content": "It is 2."}], "answer": "2"},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}], "answer": "2"},
        {"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 2"},
        {"question": "1+1?", "final_answer": ["2"]},
        {"question": "1+1?", "prompt": None, "answer": "2"},
        {"question": "1+1?", "solution": "1+1 = 2", "answer": "2"},
    ],
)
def test_layouts(row: dict[str, Any]) -> None:
    assert read_row(row) == ReadRow("1+1?", "2")


def test_a_system_message_and_examples_precede_the_question() -> None:
    shots = [{"role": "user", "content": "0+1?"}, {"role": "assistant", "content": r"\boxed{1}"}]
    read = read_row({"messages": [SYSTEM, *shots, USER], "answer": "2"})
    assert read == ReadRow("1+1?", "2", (SYSTEM, *shots))


@pytest.mark.parametrize(
    ("row", "question", "answer"),
    [
        ({"question": "Capital?", "options": ["Paris", "Rome"], "answer": "A"}, OPTIONS, "A"),
        ({"question": "Capital?", "options": ["Paris", "Rome"], "answer": 1}, OPTIONS, "B"),
        (
            {"query": "Capital?", "options": ["Paris", "Rome"], "correct_option": 1, "context": " "},
            OPTIONS,
            "B",
        ),
        (
            {
                "question": "Capital?",
                "choices": {"text": ["Paris", "Rome"], "label": ["A", "B"]},
                "answerKey": "B",
            },
            OPTIONS,
            "B",
        ),
        (
            {"query": "Capital?\n(A)Paris (B)Rome", "choices": ["(A)Paris", "(B)Rome"], "gold": [0]},
            "Capital?\n(A)Paris (B)Rome\n\nAnswer with the letter of the correct option.",
            "A",
        ),
        ({"query": "Why?", "options": ["x", "y"], "correct_option": 0, "context": "Long ago."}, None, "A"),
        ({"input": "Which?\n(A) x\n(B) y", "target": "(B)"}, "Which?\n(A) x\n(B) y", "(B)"),
    ],
)
def test_multiple_choice(row: dict[str, Any], question: str | None, answer: str) -> None:
    read = read_row(row)
    assert read.answer == answer
    if question is not None:
        assert read.question == question
    else:
        assert read.question.startswith("Long ago.\n\nWhy?\n\n(A) x\n(B) y")


def test_context_is_only_read_with_options() -> None:
    assert read_row({"question": "1+1?", "context": "algebra", "answer": "2"}).question == "1+1?"


@given(st.integers(2, 10), st.data())
def test_an_index_becomes_the_letter_that_the_reward_expects(count: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, count - 1))
    options = [f"option {i}" for i in range(count)]
    read = read_row({"question": "Which?", "options": options, "answer": index})
    assert gold_choice(read.answer, options) == LETTERS[index]


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (0.00001, "0.00001"),
        (1e20, "100000000000000000000"),
        (2.5, "2.5"),
        (-3.0, "-3.0"),
        (7, "7"),
        (Decimal("1E+3"), "1000"),
        (True, "True"),
        ("1e-5", "1e-5"),
        (float("inf"), r"\infty"),
        (float("nan"), ""),
        (Decimal("NaN"), ""),
        (None, ""),
        ("", ""),
        (r"$\boxed{5}$", "5"),
        (r"so \boxed{5", r"so \boxed{5"),
    ],
)
def test_golds(answer: object, read: str) -> None:
    assert read_row({"question": "q", "answer": answer}).answer == read


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_have_no_exponent_and_keep_their_value(value: float) -> None:
    read = read_row(json.loads(json.dumps({"question": "q", "answer": value}))).answer
    assert "e" not in read.lower()
    assert float(read) == value


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "1+1?"}, r"it has no answer \(or ground_truth, .*\), but problem: rename"),
        ({"q": "1+1?", "answer": "2"}, r"it has no question \(or problem, prompt.*\), but q, answer: rename"),
        ({}, "but nothing: rename"),
        ({"problem": " ", "answer": "2"}, "problem: must not be empty"),
        ({"problem": 5, "answer": "2"}, "problem: must be text, got 5"),
        ({"problem": "1", "answer": {"a": 1}}, "answer: must be text or a number, got {'a': 1}"),
        ({"problem": "1", "answer": ["1", "2"]}, "answer: must be one answer, got a list of 2"),
        ({"prompt": 7, "answer": "2"}, "prompt: must be text or a list of messages"),
        ({"prompt": [], "answer": "2"}, "prompt: must contain a user message"),
        ({"prompt": [SYSTEM], "answer": "2"}, "prompt: must contain a user message"),
        ({"prompt": ["x"], "answer": "2"}, "prompt: must be text or a list of messages"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "prompt.0.role: must be system, user or assistant"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt.0.content: must be text, got None"),
        ({"prompt": [{"role": "user", "content": " "}]}, "prompt.0.content: must not be empty"),
        ({"messages": [USER, SYSTEM, SYSTEM]}, "more than one message follows the last user message"),
        ({"question": "q", "options": ["x", "y"], "answer": 2}, "index of one of 2 options, got 2"),
        (
            {"question": "q", "options": list("abcdefghijkl"), "answer": "A"},
            "at most 10 are supported, got 12",
        ),
        ([1, 2], "must be an object with question and answer, got list"),
        (None, "must be an object .* got NoneType"),
    ],
)
def test_mistakes(row: Any, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        read_row(row)
