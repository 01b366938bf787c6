from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.api.chat.request import ChatRequest

MESSAGES = [{"role": "user", "content": "?"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": MESSAGES, **fields})


@given(st.sampled_from(sorted(ChatRequest.model_fields)), JSON)
def test_any_value_of_any_field_is_taken_or_refused(name: str, value: Any) -> None:
    with contextlib.suppress(ValidationError):
        assert request(**{name: value}).messages


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert request(messages=[{"role": "user", "content": parts}]).messages[0].content == "ab"


@pytest.mark.parametrize(
    "part", [{"type": "input_audio"}, {"type": "text"}, {"type": "text", "text": 1}, "a", None]
)
def test_other_parts_are_refused(part: object) -> None:
    with pytest.raises(ValidationError, match="parts of type 'text'"):
        request(messages=[{"role": "user", "content": [part]}])


def test_the_newer_name_of_the_token_limit_wins() -> None:
    assert request(max_tokens=5, max_completion_tokens=7).token_limit == 7
    assert request(max_tokens=5).token_limit == 5
    assert request().token_limit is None


def test_numbers_that_are_none_are_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            request(temperature=value)


@pytest.mark.parametrize(
    ("name", "neutral"),
    [
        ("functions", []),
        ("function_call", "none"),
        ("reasoning_effort", "none"),
        ("store", False),
    ],
)
def test_a_field_that_asks_for_nothing_is_taken(name: str, neutral: object) -> None:
    assert request(**{name: neutral})
    with pytest.raises(ValidationError, match="not support"):
        request(**{name: "something"})
