from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.answer import last_boxed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no box", None),
        (r"\boxed{42}", "42"),
        (r"\boxed{1} then \boxed{ 2 }.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"put it in \boxed{}", None),
        (r"\boxed{7} and \boxed{", "7"),
        (r"\boxed{7} and \boxed{ }", "7"),
        (r"\boxed{3", None),
        (r"\boxed {3}", None),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@given(st.text(alphabet="ab{}\\", max_size=20).map(lambda t: "\\boxed{" + t))
def test_never_fails_and_is_a_part_of_the_text(text: str) -> None:
    found = last_boxed(text)
    assert found is None or found in text
