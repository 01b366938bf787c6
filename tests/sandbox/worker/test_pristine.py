from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_image.worker import pristine
from sandbox_image.worker.pristine import Pristine


@pytest.fixture(params=[True, False], ids=["with versions", "without"], autouse=True)
def versions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not pristine._has_versions:
        pytest.skip("this Python's dicts have no version")
    monkeypatch.setattr(pristine, "_has_versions", request.param)


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda d: None, {}),
        (lambda d: d.update(a=None), {}),
        (lambda d: d.pop("a"), {}),
        (lambda d: d.clear(), {}),
        (lambda d: d.update(new=1), {"new": 1}),
        (lambda d: d.update(a=None) or d.update(a=1), {}),
    ],
)
def test_what_was_replaced_comes_back_and_what_is_new_stays(
    change: Callable[[dict[str, Any]], object], left: dict[str, Any]
) -> None:
    target = {"a": 1, "b": 2}
    first = Pristine(target)
    for _ in range(3):
        change(target)
        first.restore()
        assert target == {"a": 1, "b": 2, **left}


keys, values = st.sampled_from("abcd"), st.integers(0, 2)


@given(
    st.dictionaries(keys, values),
    st.lists(st.lists(st.tuples(keys, st.none() | values), max_size=4), max_size=4),
)
def test_any_change_is_seen(start: dict[str, int], rounds: list[list[tuple[str, int | None]]]) -> None:
    target = dict(start)
    first = Pristine(target)
    for changes in rounds:
        for key, value in changes:
            if value is None:
                target.pop(key, None)
            else:
                target[key] = value
        first.restore()
        assert {key: target[key] for key in start} == start
