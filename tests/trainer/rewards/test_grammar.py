"""Rewriting of LaTeX for the parser."""

from __future__ import annotations

import pytest

from trainer.rewards.grammar import for_parser
from trainer.rewards.math_answers import judge


@pytest.mark.parametrize(
    ("latex", "rewritten"),
    [
        (r"\cos x\cdot\sin x", r"\cos (x)\cdot\sin x"),
        (r"\ln a/\ln b", r"\ln (a)/\ln b"),
        (r"\sin^{2} x/\cos^{2} x", r"\sin^{2} (x)/\cos^{2} x"),
        (r"\ln\ln x\cdot y", r"\ln(\ln (x))\cdot y"),
        (r"\ln|x+1|\cdot y", r"\ln(|x+1|)\cdot y"),
        (r"\sin{2x}\times 3", r"\sin(2x)\times 3"),
        (r"\log_{2} n\cdot n", r"\log_{2} (n)\cdot n"),
        (r"\sin x/x", r"\sin (x)/x"),
        (r"12!^{2}", r"(12!)^{2}"),
        (r"5!!^{2}", r"(5!!)^{2}"),
        (r"\Gamma(x+1)", r"(((x+1)-1)!)"),
    ],
)
def test_rewrites(latex: str, rewritten: str) -> None:
    assert for_parser(latex) == rewritten


@pytest.mark.parametrize(
    "latex",
    [
        r"\cos(x)\cdot\sin x",
        r"\sin x\cos x",
        r"\cos\pi/3",
        r"\sin x/2",
        r"\sin 2\cdot\pi",
        r"\log 2\times 10^{3}",
        r"|\sin x|\cdot y",
        r"\sin x+\cos x\cos y",
        r"x\cdot\sin x",
    ],
)
def test_other_arguments_remain(latex: str) -> None:
    assert for_parser(latex) == latex


@pytest.mark.parametrize(
    "latex",
    ["(" * 31 + "x" + ")" * 31, "x_{" * 40, "|x-1|+" * 31 + "1", r"\max(x," * 100, "2 3", "2'"],
)
def test_rejects_what_the_parser_misreads_or_parses_slowly(latex: str) -> None:
    assert for_parser(latex) is None
    assert judge("5", latex) != "correct"


def test_accepts_deep_and_long_expressions() -> None:
    fraction = "1"
    for _ in range(8):
        fraction = rf"1+\frac{{1}}{{{fraction}}}"
    assert judge(r"\frac{89}{55}", fraction) == "incorrect"
    assert judge(r"\frac{55}{34}", fraction) == "correct"
    assert judge("20|x|", "+".join(["|x|"] * 20)) == "correct"
