"""Request bodies of chat front ends that are too large to install, in the form in which they arrive."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conformance.conftest import KEY

HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello there, how are you?"},
    {"role": "user", "content": "Hello"},
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "index": 0,
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]
OPEN_WEBUI: dict[str, dict[str, Any]] = {
    "chat": {"stream": True, "model": "scripted", "messages": HISTORY},
    "chat with all parameters": {
        "stream": True,
        "model": "scripted",
        "messages": HISTORY,
        "stream_options": {"include_usage": True},
        "temperature": 0.8,
        "top_p": 0.9,
        "min_p": 0.0,
        "max_tokens": 128,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "seed": 0,
        "stop": ["</s>"],
        "reasoning_effort": "medium",
        "user": {"name": "Ann", "id": "4f1e", "email": "ann@example.com", "role": "admin"},
    },
    "title": {
        "model": "scripted",
        "messages": [{"role": "user", "content": "### Task:\nGenerate a concise title.\nHello"}],
        "stream": False,
        "max_completion_tokens": 1000,
        "metadata": {"task": "title_generation", "chat_id": "0270ffb4"},
    },
    "tool loop": {"stream": True, "model": "scripted", "messages": CALLED, "tools": [WEATHER]},
    "text parts": {
        "stream": True,
        "model": "scripted",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    },
}
LIBRECHAT: dict[str, dict[str, Any]] = {
    "chat": {
        "model": "scripted",
        "user": "65f1c0ffee65f1c0ffee65f1",
        "stream": True,
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": "Ann"}],
    },
    "tool loop": {
        "model": "scripted",
        "user": "65f1c0ffee65f1c0ffee65f1",
        "stream": True,
        "n": 1,
        "tool_choice": "auto",
        "tools": [WEATHER],
        "messages": CALLED,
        "stream_options": {"include_usage": True},
    },
    "title": {
        "model": "scripted",
        "user": "65f1c0ffee65f1c0ffee65f1",
        "stream": False,
        "temperature": 0.2,
        "max_tokens": 16,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "messages": [{"role": "system", "content": "Write a title."}, {"role": "user", "content": "Hello"}],
    },
}


@pytest.mark.parametrize(
    "body",
    [*OPEN_WEBUI.values(), *LIBRECHAT.values()],
    ids=[*(f"Open WebUI: {name}" for name in OPEN_WEBUI), *(f"LibreChat: {name}" for name in LIBRECHAT)],
)
def test_body_is_answered(body: dict[str, Any], url: str) -> None:
    answer = httpx.post(
        f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    if body["stream"]:
        assert answer.text.rstrip().endswith("data: [DONE]")
        assert '"error"' not in answer.text
    else:
        assert answer.json()["choices"][0]["message"]["content"]
