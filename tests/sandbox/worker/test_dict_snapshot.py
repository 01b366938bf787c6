from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_image.worker import namespace
from sandbox_image.worker.namespace import DictSnapshot


@pytest.fixture(params=[True, False], ids=["with dict_versions", "without"], autouse=True)
def dict_versions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not namespace._has_versions:
        pytest.skip("this Python's dicts have no version")
    monkeypatch.setattr(namespace, "_has_versions", request.param)


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
def test_restores_replaced_items_and_keeps_new_ones(
    change: Callable[[dict[str, Any]], object], left: dict[str, Any]
) -> None:
    target = {"a": 1, "b": 2}
    snapshot = DictSnapshot(target)
    for _ in range(3):
        change(target)
        snapshot.restore()
        assert target == {"a": 1, "b": 2, **left}


keys, values = st.sampled_from("abcd"), st.integers(0, 2)


@given(
    st.dictionaries(keys, values),
    st.lists(st.lists(st.tuples(keys, st.none() | values), max_size=4), max_size=4),
)
def test_detects_any_change(start: dict[str, int], rounds: list[list[tuple[str, int | None]]]) -> None:
    target = dict(start)
    snapshot = DictSnapshot(target)
    for changes in rounds:
        for key, value in changes:
            if value is None:
                target.pop(key, None)
            else:
                target[key] = value
        snapshot.restore()
        assert {key: target[key] for key in start} == start
