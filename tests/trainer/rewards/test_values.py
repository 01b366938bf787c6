"""Limits on the size of values, and answers that exceed them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from trainer.rewards.expressions import read
from trainer.rewards.math_answers import judge
from trainer.rewards.values import (
    MAX_BITS,
    MAX_FACTORIAL,
    TooLargeError,
    check_exponent,
    check_factorial,
    check_power,
    check_range,
    evaluate,
)


@pytest.mark.parametrize(
    ("latex", "exact"),
    [
        ("2^{100000}", True),
        ("10^{1000000}", True),
        ("2^{2^{20}}", True),
        ("2^{7!}", True),
        ("3000!", True),
        ("2^{2^{30}}", False),
        ("10^{10^{10}}", False),
        ("(10^6)!", False),
    ],
)
def test_large_values_are_exact_up_to_a_limit(latex: str, exact: bool) -> None:
    assert isinstance(evaluate(read(latex), {}), Fraction) == exact


@pytest.mark.parametrize(
    "latex",
    [
        "9^{9^{9^{9}}}",
        "9^{-9^{9^{9}}}",
        "2024^{2024^{2024}}",
        "((9^{9})!)!",
        r"\sum_{i=1}^{100000000} i",
        r"\exp(\exp(\exp(1000)))",
        r"\lfloor \pi^{10^{80}}\rfloor",
        r"\sin(10^{10^{50}})",
        r"\cos(10^{10^{12}})",
        r"\tan(9^{9^9})",
        r"\sin(10^{10^{6}})",
        r"\sec(10^{70}\pi)",
        r"\sum_{k=1}^{20000} k!",
        r"\sum_{k=1}^{20000} \frac{1}{k^{50}}",
        r"\sum_{k=1}^{20000} \binom{20000}{k}",
        r"\prod_{k=1}^{20000} k^k",
        r"\sum_{i=1}^{20000}\sum_{j=1}^{i} 1",
        r"\sinh(9^{9^9})",
        r"\Gamma(-1000000.5)",
        r"10^{2000000}\mod 10^{1000000}",
    ],
)
def test_rejects_too_large_values(latex: str) -> None:
    with pytest.raises(TooLargeError):
        evaluate(read(latex), {})
    assert judge("5", latex) == "refused"
    assert judge(latex, latex) == "correct"


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("10^{10^{10}}", "10^{10^{11}}", "incorrect"),
        ("10^{10^{10}}", "10^{10^{10}}+1", "incorrect"),
        ("2025^{2025^{2025}}", r"2025^{2025^{25\cdot 81}}", "correct"),
        ("2025^{2025^{2025}}", "2025^{2025^{2024}}", "refused"),
        (r"5\cdot 2025^{2025^{2025}}", r"2025^{2025^{2025}}\cdot 5", "correct"),
    ],
)
def test_large_values_are_compared_by_their_parts(gold: str, answer: str, verdict: str) -> None:
    assert judge(gold, answer) == verdict


def test_limits_are_exact() -> None:
    assert check_power(2, MAX_BITS)
    assert not check_power(2, MAX_BITS + 1)
    assert check_power(Fraction(1, 2), -MAX_BITS)
    with pytest.raises(TooLargeError):
        check_power(1 << (MAX_BITS + 1), 1)
    assert check_factorial(Fraction(MAX_FACTORIAL))
    assert not check_factorial(Fraction(MAX_FACTORIAL + 1))
    check_exponent(Fraction(10**60))
    with pytest.raises(TooLargeError):
        check_exponent(Fraction(10**61))
    with pytest.raises(TooLargeError):
        check_range(Fraction(10**6))


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        (r"\sum_{k=1}^{100} k!", r"1+\sum_{k=2}^{100} k!", "correct"),
        (r"\sum_{k=1}^{100} k!", r"\sum_{k=2}^{100} k!", "incorrect"),
        (r"\sum_{k=1}^{15000} \frac{1}{k(k+1)}", r"\frac{15000}{15001}", "correct"),
        (r"\sum_{k=1}^{15000} \frac{1}{k(k+1)}", r"\frac{14999}{15000}", "incorrect"),
        (r"\prod_{k=1}^{15000} \frac{k}{k+1}", r"\frac{1}{15001}", "correct"),
        (r"\prod_{k=1}^{15000} \frac{k}{k+1}", r"\frac{1}{15000}", "incorrect"),
        (r"\frac{x^{2025}-x}{x-1}", r"\sum_{k=1}^{2024} x^k", "correct"),
        (r"\frac{x^{2025}-x}{x-1}", r"\sum_{k=1}^{2025} x^k", "incorrect"),
        (r"\sin(\pi\cdot 10^{30}+x)", r"\sin x", "correct"),
        (r"\cos(\pi\cdot 10^{30}+1)", r"\cos 1", "correct"),
        (r"\cos(\pi\cdot 10^{30}+1)", r"\cos 2", "incorrect"),
        (r"10^{1000000}\cdot 10^{1000000}\cdot 10^{1000000}", "10^{3000000}", "correct"),
        (r"10^{1000000}\cdot 10^{1000000}\cdot 10^{1000000}", "10^{3000001}", "incorrect"),
        ("5", r"\sum_{k=1}^{20000} |x-k|", "refused"),
        ("20100", r"\sum_{i=1}^{200}\sum_{j=1}^{i} 1", "correct"),
        ("20101", r"\sum_{i=1}^{200}\sum_{j=1}^{i} 1", "incorrect"),
        (r"\frac{n(n+1)(n+2)}{6}", r"\sum_{i=1}^{n}\sum_{j=1}^{i} j", "correct"),
        (r"\Gamma(1000001.5)", r"1000000.5\cdot\Gamma(1000000.5)", "correct"),
        (r"\Gamma(1000001.5)", r"1000001.5\cdot\Gamma(1000000.5)", "incorrect"),
        (r"\Gamma(\frac12)^2", r"\pi", "correct"),
        (r"\tanh 1", r"\frac{e^2-1}{e^2+1}", "correct"),
        ("x", r"|x|+\sin(10^{10^{6}})", "refused"),
    ],
)
def test_large_sums_and_angles_are_computed_up_to_a_limit(gold: str, answer: str, verdict: str) -> None:
    assert judge(gold, answer) == verdict
