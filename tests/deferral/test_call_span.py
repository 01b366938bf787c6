from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.call_span import CALL_CLOSE, CallSpan, SpanState

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def add(text: str) -> tuple[CallSpan, list[SpanState]]:
    span = CallSpan()
    states = []
    for char in text:
        states.append(span.add(char))
        if states[-1] is not SpanState.OPEN:
            break
    return span, states


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.booleans())
def test_any_json_object_is_a_span(arguments: dict[str, object], ascii_only: bool) -> None:
    call = f"\n{json.dumps({'name': 'f', 'arguments': arguments}, ensure_ascii=ascii_only)}\n"
    span, states = add(call + CALL_CLOSE)
    assert states[:-1] == [SpanState.OPEN] * (len(call) + len(CALL_CLOSE) - 1)
    assert states[-1] is SpanState.CLOSED
    assert span.is_complete
    assert span.text == call + CALL_CLOSE


@pytest.mark.parametrize(
    ("text", "read", "is_complete"),
    [
        ("\nCode execution result: 1", "\n", False),
        ("get_weather(Ulm)", "", False),
        ("<tool_call>", "", False),
        ('{"name": "f",\n```python\n', '{"name": "f",\n', False),
        ('{"code": "a\nb"}', '{"code": "a', False),
        ("{'name': 'f'}", "{", False),
        ('{"name": "f"<tool_call>', '{"name": "f"', False),
        ('{"name": "f"}\nThen', '{"name": "f"}\n', True),
        ('{"name": "f"}</tool', '{"name": "f"}', True),
        ('{"a": {}}}}\n\n```', '{"a": {}}}}\n\n', True),
    ],
)
def test_leaves_text_that_is_not_a_call(text: str, read: str, is_complete: bool) -> None:
    span, states = add(text)
    assert (span.text, span.is_complete) == (read, is_complete)
    assert states[-1] is (SpanState.OPEN if text.endswith("</tool") else SpanState.BROKEN)


def test_a_missing_bracket_is_left_to_the_parser() -> None:
    span, states = add('{"name": "f", "arguments": {"a": 1}' + CALL_CLOSE)
    assert states[-1] is SpanState.CLOSED
    assert span.is_complete
