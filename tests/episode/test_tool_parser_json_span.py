from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.episode.tool_parser import JsonSpan, loads

OBJECTS = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@given(OBJECTS, st.booleans(), st.text(max_size=5))
def test_span_ends_with_the_json_object(value: dict[str, object], ascii_only: bool, after: str) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    span = JsonSpan()
    assert span.take(text + after) == len(text)
    assert span.closed
    slow = JsonSpan()
    assert [slow.take(char) for char in text] == [1] * len(text)
    assert slow.closed


def test_loads_accepts_standard_json_only() -> None:
    assert loads('{"a": [1, 2.5, "x"]}') == {"a": [1, 2.5, "x"]}
    for text in ('{"a": NaN}', "[-Infinity]", "{", "[" * 100_000, "{'a': 1}"):
        with pytest.raises(ValueError):  # noqa: PT011
            loads(text)
