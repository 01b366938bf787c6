from __future__ import annotations

from random import Random

import pytest

from trainer.quickstart.phrasing import ask_for, dress, in_words, order, whether, written


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "zero"), (13, "thirteen"), (40, "forty"), (97, "ninety-seven"), (100, "one hundred")],
)
def test_numbers_in_words(value: int, text: str) -> None:
    assert in_words(value) == text


def test_separators_do_not_change_digits() -> None:
    forms = {written(1234567, Random(seed)) for seed in range(200)}
    assert {"1234567", "1,234,567", "1_234_567"} <= forms
    assert all("".join(c for c in form if c.isdigit()) == "1234567" for form in forms)


def test_wordings_preserve_expression() -> None:
    for seed in range(500):
        rng = Random(seed)
        for text in (
            ask_for("12*13", rng),
            order("add 12*13 to 0", rng),
            whether("12*13 is 0", "is 12*13 0", rng),
        ):
            assert "12*13" in dress(text, rng)


def test_wordings_are_diverse() -> None:
    assert len({dress(ask_for("2+2", Random(seed)), Random(seed)) for seed in range(1000)}) > 800
