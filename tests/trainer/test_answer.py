"""The last box of a response, and the screen for answers of boundless value."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.answer import is_explosive, last_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{204}.", "204"),
        (r"first \boxed{3}, then \boxed{204}", "204"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{7} and cut: \boxed{8", "7"),
        (r"\boxed{", None),
        (r"\boxed 5", None),
        (r"\\boxed{5}", None),
        ("} stray } \\boxed{6}", "6"),
        ("204", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


balanced = st.recursive(
    st.text("ab 1\n", max_size=5), lambda inner: st.builds("{{{}}}{}".format, inner, inner), max_leaves=8
)


@given(before=st.text(st.sampled_from("ab{}\\ \n"), max_size=30), answer=balanced)
def test_whatever_comes_before_the_last_box_does_not_matter(before: str, answer: str) -> None:
    # A backslash at the very end would change what follows it.
    assert last_boxed(before.rstrip("\\") + rf"\boxed{{{answer}}}") == answer


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\", "x", "\\}"]), max_size=40).map("".join))
def test_any_text_gives_a_balanced_answer_or_none(text: str) -> None:
    answer = last_boxed(text)
    assert answer is None or rf"{answer}}}" in text


def test_many_unclosed_boxes_take_linear_time() -> None:
    """200,000 of them; what is quadratic would take hours, so the limit is the test runner's."""
    started = time.perf_counter()
    assert last_boxed("\\boxed{" * 200_000) is None
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize(
    "answer",
    [
        "1000000!",
        "{100000}!",
        r"\left(10^6\right)!",
        "(3^{50})!",
        "30!!",
        "5!!!",
        "((9!)!)!",
        "9^{9^{9^{9}}}",
        "9^9^9^9",
        "9**9**9",
        "10^{1000000000}",
        "10^{-100000000}",
        "x^{x^{x^{x}}}",
        "2^{3!}",
        r"\sum_{i=1}^{100000000} i",
        "1" * 1000,
    ],
)
def test_explosive(answer: str) -> None:
    assert is_explosive(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "204",
        r"2^{25} \cdot 26!",
        r"\frac{100!}{2^{50}}",
        r"\frac{1}{2004!}",
        r"\frac{d !}{2 k(d-k) !}",
        "5!!",
        r"10,\!080",
        "e^{x^2}",
        "2^{2^{4}}",
        "x^{2}+y^{2}=z^{2}",
        "2^{2013}",
        "a^{n^{2}+1}",
        "-1.5 \\times 10^{-7}",
        "!",
        "^",
    ],
)
def test_not_explosive(answer: str) -> None:
    assert not is_explosive(answer)


@given(st.text(st.sampled_from("0123456789!^{}()[]*x\\ "), max_size=200))
def test_the_screen_takes_any_text(answer: str) -> None:
    assert is_explosive(answer) in (True, False)
