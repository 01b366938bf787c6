from __future__ import annotations

import pytest

from service.deferral.episode import delayed_calls


@pytest.mark.parametrize(
    ("codes", "gaps", "expected"),
    [
        ([], [], 0),
        (["x = 1"], [], 0),
        (["x = 1", "print(x)"], ["then"], 1),
        (["x = 1", "y = x + 1", "print(y)"], ["then", "and"], 2),
        (["x = 1", "y = 2"], ["\n\n"], 0),
        (["x = 1", ""], ["then"], 0),
        (["x = 1", "# only x\nprint(x)"], ["then"], 1),
        (["x = 1", "x = 1\nprint(x)"], ["then"], 0),
        (["x = 1\ny = 2", "y = 2  "], ["then"], 0),
        (["x = 1", "x = 1\ny = 2"], ["then"], 0),
        (["print(1)", "x = 1\nprint(x)"], ["then"], 1),
        (["x = 1", "y = 2", "x = 1\ny = 2"], ["a", "b"], 0),
    ],
)
def test_delayed_calls(codes: list[str], gaps: list[str], expected: int) -> None:
    assert delayed_calls(codes, gaps) == expected
