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
def test_any_value_of_any_field_is_accepted_or_rejected(name: str, value: Any) -> None:
    with contextlib.suppress(ValidationError):
        assert request(**{name: value}).messages


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert request(messages=[{"role": "user", "content": parts}]).messages[0].content == "ab"


@pytest.mark.parametrize(
    "part", [{"type": "input_audio"}, {"type": "text"}, {"type": "text", "text": 1}, 1, None]
)
def test_rejects_parts_of_other_types(part: object) -> None:
    with pytest.raises(ValidationError, match="part"):
        request(messages=[{"role": "user", "content": [part]}])


def test_max_completion_tokens_takes_precedence() -> None:
    assert request(max_tokens=5, max_completion_tokens=7).token_limit == 7
    assert request(max_tokens=5).token_limit == 5
    assert request().token_limit is None


def test_rejects_nan_and_infinity() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            request(temperature=value)


@pytest.mark.parametrize(
    ("name", "neutral"),
    [
        ("functions", []),
        ("function_call", "none"),
        ("modalities", ["text"]),
        ("allowed_token_ids", []),
    ],
)
def test_accepts_neutral_values(name: str, neutral: object) -> None:
    assert request(**{name: neutral})
    with pytest.raises(ValidationError, match="not support"):
        request(**{name: "something"})


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "xhigh"}, True),
        ({"reasoning": {"effort": "high", "exclude": False}}, True),
        ({"reasoning": {"enabled": False}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"enable_thinking": True}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, False),
        ({"chat_template_kwargs": None, "reasoning_effort": None}, False),
        ({"reasoning_effort": "high", "response_format": {"type": "json_object"}}, True),
        ({"reasoning_effort": "high", "thinking_budget": 0}, False),
        ({"reasoning": {"max_tokens": 100}}, True),
        ({"reasoning": {"max_tokens": 0}}, False),
        ({"thinking_budget": 100}, False),
    ],
)
def test_reasoning_effort_turns_thinking_on_or_off(fields: dict[str, Any], thinks: bool) -> None:
    assert request(**fields).thinks is thinks


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, None),
        ({"reasoning_effort": "low"}, 1024),
        ({"reasoning_effort": "high"}, None),
        ({"reasoning": {"effort": "medium"}}, 8192),
        ({"reasoning_effort": "low", "thinking_budget": 5}, 5),
        ({"reasoning_effort": "low", "thinking_budget": -1}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 7}}, 7),
        ({"reasoning": {"max_tokens": 8}}, 8),
        ({"thinking_token_budget": 9}, 9),
        ({"chat_template_kwargs": {"enable_thinking": True, "thinking_budget": 10}}, 10),
    ],
)
def test_thought_has_a_budget(fields: dict[str, Any], tokens: int | None) -> None:
    assert request(**fields).thinking_tokens == tokens


def test_accepts_other_names_of_the_token_limit() -> None:
    assert request(n_predict=5).token_limit == 5
    assert request(n_predict=-1).token_limit is None
    assert request(max_new_tokens=5).token_limit == 5
