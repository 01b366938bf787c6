from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.answer import last_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{204}.", "204"),
        (r"first \boxed{3}, then \boxed{ 204 }", "204"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{7} and cut: \boxed{8", "7"),
        (r"\boxed{7} and \boxed{ }", "7"),
        (r"put it in \boxed{}", None),
        (r"\boxed{", None),
        (r"\boxed 5", "5"),
        (r"so \boxed 12,500.", "12,500"),
        (r"it is \boxed B.", "B"),
        (r"the \boxed answer", None),
        (r"the \boxed command", None),
        (r"\boxed", None),
        (r"\fbox{5}", "5"),
        (r"\boxed{3} or \fbox{5}", "5"),
        (r"\boxed{\fbox{5}}", r"\fbox{5}"),
        (r"\boxed{5\ }", "5"),
        (r"\boxed{~\,5\quad}", "5"),
        (r"\boxed{\ }", None),
        (r"\boxed{\{5\}}", r"\{5\}"),
        (r"\boxed {9} and \boxed{8", "9"),
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
).filter(str.strip)


@given(before=st.text(st.sampled_from("ab{}\\ \n"), max_size=30), answer=balanced)
def test_text_before_the_last_box_does_not_matter(before: str, answer: str) -> None:
    # A backslash at the end would escape the box.
    assert last_boxed(before.rstrip("\\") + rf"\boxed{{{answer}}}") == answer.strip()


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\", "x", "\\}"]), max_size=40).map("".join))
def test_any_text_has_a_balanced_answer_or_none(text: str) -> None:
    answer = last_boxed(text)
    assert answer is None or rf"{answer}}}" in text


def test_spaces_in_a_box_take_linear_time() -> None:
    assert last_boxed("\\boxed{5" + " ~" * 100_000 + "}") == "5"


def test_many_unclosed_boxes_take_linear_time() -> None:
    """200,000 boxes. A quadratic search would take hours and exceed the timeout of the test runner."""
    assert last_boxed("\\boxed{" * 200_000) is None
