"""The screen for answers of boundless value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.answer import is_explosive


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
