from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rewards.choice import LETTERS, find_choice, gold_choice, options_of, read_choice

CITIES = ("Paris", "London", "Rome")


@pytest.mark.parametrize(
    "response",
    [
        r"so \boxed{B}",
        r"\boxed{(B)}",
        r"\boxed{\text{B}}",
        r"\boxed{\text{B. London}}",
        r"\boxed{London}",
        r"\boxed{\text{London}.}",
        r"\boxed{b}",
        r"\boxed{\textbf{(B)}\ London}",
        r"\boxed{\mathrm{(B)}~London}",
        "The answer is B",
        "the answer is (B).",
        "Answer: B",
        "ANSWER: B",
        "So the correct option is **B**.",
        "The answer is option B because it is",
        "The answer: $B$",
        "final answer: \\text{B}",
        "Answer is:\n\nB",
        "The final answer is: **(B) London**",
        "Option A is wrong. Option B is right. The answer is B) London.",
        "The answer is A. No, the answer is B",
        "(B)",
        "**B**",
        "B.",
        "Thus\n(B) is right",
        "I think\nit is London.",
        "The correct answer is London",
        r"\boxed{A} or rather \boxed{B}",
        r"The answer is A, so \boxed{B}",
        "**Answer**: B",
        "**Answer:** B",
        "__Answer__: B",
        "Answer - B",
        "The answer is, therefore, B.",
        "The answer is “B”.",
        "I choose B.",
        "The answer is B rather than C.",
        "The answer is B, which is London, and C is Rome.",
        "### Answer\n\nB",
        "B is the correct answer.",
        "**B** is the correct option.",
        "So (B) is the answer.",
        "B is correct because A and C are not.",
        r"The answer is \(B\).",
        "The answer is most likely B.",
        "The best choice is probably B.",
        "The answer must be the letter B",
        r"\boxed{\text{The answer is B}}",
        r"\boxed{\text{The correct answer is (B)}}",
        "The answer is B. Option C is wrong.",
        "The answer is B. Option C (Rome) is not in England.",
        "The answer is B. Choice C can be eliminated.",
        "The answer is B, not C.",
        "The answer is B, I think.",
        "The answer is B and I am sure.",
        "The answer is B. C is wrong.",
        "The answer is B. The wrong answer is C.",
        "I do not think the answer is A. The answer is B.",
        "Option B fits. Option C does not fit.",
        "Option B it is, unlike option C",
        "If A is correct, then B is not. But the answer is B.",
    ],
)
def test_finds_the_letter(response: str) -> None:
    assert find_choice(response, CITIES) == "B"


@pytest.mark.parametrize(
    "response",
    [
        "",
        "no idea",
        "It is A and B",
        "(A) and (B)",
        "The answer is A good idea",
        "answer is Both",
        r"\boxed{A, B}",
        r"\boxed{D}",
        "Answer: D",
        "London is not Paris",
        r"\boxed{London or Paris}",
        r"the answer is A \boxed{7}",
        "\\boxed{" + "B" * 5000 + "}",
        "The answer is not option B",
        "The answer is not B",
        "The answer is not (B).",
        "The answer isn't London",
        "The answer cannot be (B)",
        "The answer is B or C",
        "The answer is B or (C)",
        "The answer is (B) and (C).",
        "The answer is A. No, the answer is B or C",
        "The answer is **B** or **C**",
        "Answer: B, C",
        "Answer: B/C",
        "Answer: B & C.",
        "Either A or B is the correct answer.",
        "Neither A nor B is the correct answer.",
        "B is not the correct answer.",
        "I don't think the answer is B",
        "Option B is wrong.",
        "Option B can be ruled out",
        "Option (B) can be eliminated.",
        "Option B or option C",
        "The answer is definitely not B.",
        "Both B and C are correct answers.",
        "The answer isn't option B",
        "It can't be option B",
        "It is not option B.",
        r"\boxed{\text{The answer is not B}}",
        r"\boxed{\text{The answer is B or C}}",
    ],
)
def test_no_letter(response: str) -> None:
    assert find_choice(response, CITIES) is None


def test_article_is_not_a_letter_but_a_reason_may_follow() -> None:
    assert find_choice("The answer is A because of that", CITIES) == "A"
    assert find_choice("The answer is A. Good.", CITIES) == "A"


def test_text_of_an_option_wins_over_a_small_letter() -> None:
    assert read_choice("b", ("c", "b", "a")) == "B"
    assert read_choice("a", ("c", "b", "a")) == "C"
    assert read_choice("A", ("c", "b", "a")) == "A"


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (r"\boxed{\frac12}", "B"),
        (r"\boxed{\dfrac{1}{2}}", "B"),
        (r"\boxed{\frac{1}{3}}", "A"),
        (r"\boxed{$2\sqrt3$}", "C"),
        (r"\boxed{2{,}000}", "D"),
        (r"\boxed{\frac{2}{4}}", None),
        (r"\boxed{\frac13, \frac12}", None),
    ],
)
def test_text_of_an_option_in_another_spelling(response: str, letter: str | None) -> None:
    assert find_choice(response, (r"\frac{1}{3}", r"$\frac{1}{2}$", r"2\sqrt{3}", "2000")) == letter


@given(
    letter=st.sampled_from(LETTERS), before=st.text(st.characters(categories=["Ll", "Nd", "Zs"]), max_size=30)
)
def test_any_letter_in_a_box(letter: str, before: str) -> None:
    assert find_choice(f"{before} \\boxed{{({letter})}}") == letter
    assert find_choice(f"{before}\nThe answer is ({letter}).") == letter


@given(st.text(alphabet="answer is(B)*$\\{}text \n", max_size=400))
def test_never_raises(text: str) -> None:
    assert find_choice(text, CITIES) in (None, "A", "B", "C")


def test_linear_in_long_responses() -> None:
    began = time.process_time()
    for text in (
        "answer is " + " " * 100_000,
        "answer " * 30_000,
        "(" * 100_000,
        "**" * 100_000,
        "answer is is" * 20_000,
    ):
        find_choice(text, CITIES)
    assert time.process_time() - began < 20  # a quadratic pattern takes minutes


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"options": ["x", "y"]}, ("x", "y")),
        ({"choices": ["(A)x", "(B)y"]}, ("x", "y")),
        ({"choices": {"text": ["x", "y"], "label": ["A", "B"]}}, ("x", "y")),
        ({"question": "Which?\nOptions:\n(A) 01/02\n(B) 03/04"}, ("01/02", "03/04")),
        ({"question": "Which?\nA. x\nB. y\nC. z"}, ("x", "y", "z")),
        ({"question": "Let\n(B) be", "options": None}, ()),
        ({"question": "Which?"}, ()),
    ],
)
def test_options(row: dict[str, object], options: tuple[str, ...]) -> None:
    assert options_of(row) == options


@pytest.mark.parametrize(
    ("gold", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("b", "B"),
        ("London", "B"),
        ("1", "B"),
        ("9", None),
        ("Madrid", None),
        ("7", None),
    ],
)
def test_gold_letters(gold: str, letter: str | None) -> None:
    assert gold_choice(gold, CITIES) == letter


def test_gold_index_is_an_option_first() -> None:
    assert gold_choice("1", ("2", "1")) == "B"
    assert gold_choice("0", ("2", "1")) == "A"
