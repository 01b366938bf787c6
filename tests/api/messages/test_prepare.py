"""A Messages request and the chat request that means the same have the same prompt and sampling."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api.chat.prepare import prepare
from service.api.chat.request import ChatRequest
from service.api.errors import ApiError
from service.api.messages.prepare import count_tokens, prepare_message
from service.api.messages.request import CountTokensRequest, MessagesRequest
from service.api.state import Server
from service.deferral.policy import DeferralPolicy
from service.engines.base import OPTIONAL_SAMPLING
from service.engines.checkpoint import quickstart
from service.engines.tokenizer import HFTokenizer
from service.store.replies import ReplyStore
from tests.support.messages_api import CODE_TOOL, WEATHER
from tests.support.responses_api import sandbox
from tests.support.scripted import ScriptedEngine
from tests.support.serving import make_app

FUNCTION = {
    "type": "function",
    "function": {
        "name": WEATHER["name"],
        "description": WEATHER["description"],
        "parameters": WEATHER["input_schema"],
    },
}
Pair = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer() -> HFTokenizer:
    return HFTokenizer(str(quickstart()))


@pytest.fixture
async def parts(tokenizer: HFTokenizer) -> AsyncGenerator[tuple[Server, ReplyStore], None]:
    """A server with the tokenizer of a real checkpoint, and its stored replies."""
    engine = ScriptedEngine("")
    engine.tokenizer = tokenizer  # type: ignore[assignment]
    engine.capabilities = frozenset(OPTIONAL_SAMPLING)
    # The other instruction contains control tokens.
    app = make_app(engine, sandbox(), DeferralPolicy(prompt="brief-v1"))
    async with app.router.lifespan_context(app):
        yield app.state.server, app.state.responses.replies


SPELLINGS = (
    "<|im_end|>",
    "<|im_start|>system\n",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "```python\n",
)
TEXT = (
    st.lists(
        st.one_of(st.sampled_from(SPELLINGS), st.text("ab \nÄ", min_size=1, max_size=5)),
        min_size=1,
        max_size=4,
    )
    .map("".join)
    .filter(lambda text: text.strip() != "")
)


def texts(text: str) -> list[Any]:
    """Return ``text`` as a block, or split into two."""
    half = len(text) // 2
    return [{"type": "text", "text": text[:half]}, {"type": "text", "text": text[half:]}]


@st.composite
def turns(draw: st.DrawFn) -> Pair:
    """The messages of a conversation in both APIs, and the fields that belong to them."""
    ours: list[Any] = []
    chat: list[Any] = []
    more: Pair = ({}, {})
    if draw(st.booleans()):
        system = draw(TEXT)
        more[0]["system"] = draw(st.sampled_from([system, texts(system)]))
        chat.append({"role": "system", "content": system})
    for number in range(draw(st.integers(0, 2))):
        question = draw(TEXT)
        ours.append({"role": "user", "content": draw(st.sampled_from([question, texts(question)]))})
        chat.append({"role": "user", "content": question})
        answer, thought = draw(TEXT), draw(st.sampled_from(["", "Hm.</think>"]))
        blocks: list[Any] = texts(answer)
        reply: Any = {"role": "assistant", "content": answer}
        if thought:
            blocks.insert(0, {"type": "thinking", "thinking": thought, "signature": "x"})
            reply["reasoning_content"] = thought
        results: list[Any] = []
        if draw(st.booleans()):
            arguments = {"city": draw(TEXT)}
            blocks.append({"type": "tool_use", "id": f"t{number}", "name": "weather", "input": arguments})
            call = {"name": "weather", "arguments": arguments}
            reply["tool_calls"] = [{"id": f"t{number}", "type": "function", "function": call}]
            result = draw(TEXT)
            results = [{"type": "tool_result", "tool_use_id": f"t{number}", "content": result}]
        ours.append({"role": "assistant", "content": blocks})
        chat.append(reply)
        if results:
            ours.append({"role": "user", "content": results})
            chat.append({"role": "tool", "tool_call_id": f"t{number}", "content": results[0]["content"]})
            ours.append({"role": "assistant", "content": "Done."})
            chat.append({"role": "assistant", "content": "Done."})
    question = draw(TEXT)
    ours.append({"role": "user", "content": question})
    chat.append({"role": "user", "content": question})
    if draw(st.booleans()):
        beginning = f"{draw(TEXT)}."  # a prompt that ends with "<think>" can't force a call
        ours.append({"role": "assistant", "content": beginning})
        chat.append({"role": "assistant", "content": beginning})
        more[1]["continue_final_message"] = True
    return {"messages": ours, **more[0]}, {"messages": chat, **more[1]}


MODES: list[Pair] = [
    ({}, {"deferral": {"enabled": False}}),
    ({"tools": CODE_TOOL}, {}),
    ({"tools": CODE_TOOL, "deferral": {"max_turns": 2}}, {"deferral": {"max_turns": 2}}),
    ({"tools": [WEATHER]}, {"tools": [FUNCTION]}),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}},
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    ),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        {"tools": [FUNCTION], "tool_choice": "required", "parallel_tool_calls": False},
    ),
    (
        {"output_format": {"type": "json_schema", "schema": {"type": "object"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}},
    ),
]
SAMPLING: list[Pair] = [
    ({}, {}),
    ({"stop_sequences": ["x", "yz"]}, {"stop": ["x", "yz"]}),
    ({"temperature": 0.3, "top_p": 0.5, "top_k": 4}, {"temperature": 0.3, "top_p": 0.5, "top_k": 4}),
    ({"seed": 3, "min_p": 0.1}, {"seed": 3, "min_p": 0.1}),
]
THINKING: list[Pair] = [
    ({}, {}),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 2048}},
        {"reasoning_effort": "high", "thinking_budget": 2048},
    ),
    ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
    ({"thinking": {"type": "adaptive"}}, {"reasoning_effort": "high"}),
    ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    turns(), st.sampled_from(MODES), st.sampled_from(SAMPLING), st.sampled_from(THINKING), st.integers(1, 99)
)
async def test_same_tokens_and_sampling_as_chat(
    parts: tuple[Server, ReplyStore], messages: Pair, mode: Pair, sampling: Pair, thinking: Pair, limit: int
) -> None:
    server, store = parts
    ours, chat = (
        {"model": "scripted", "max_tokens": limit, **messages[at], **mode[at], **sampling[at], **thinking[at]}
        for at in (0, 1)
    )
    prepared = await prepare_message(server, store, MessagesRequest.model_validate(ours), owner="")
    expected = await prepare(server, ChatRequest.model_validate(chat))
    assert prepared.chat.prompt_ids == expected.prompt_ids
    assert prepared.chat.sampling == expected.sampling
    assert prepared.chat.policy == expected.policy
    assert prepared.chat.request.stop == expected.request.stop
    assert prepared.chat.request.parallel_tool_calls == expected.request.parallel_tool_calls
    assert prepared.chat.request.deferred == expected.request.deferred
    assert prepared.chat.request.thinking_tokens == expected.request.thinking_tokens
    assert prepared.chat.thinks == expected.thinks
    counted = {name: value for name, value in ours.items() if name in CountTokensRequest.model_fields}
    count = await count_tokens(server, store, CountTokensRequest.model_validate(counted), owner="")
    assert count == len(expected.prompt_ids)


BLOCKS = st.sampled_from(
    [
        lambda text: {"type": "text", "text": text},
        lambda text: {"type": "thinking", "thinking": text, "signature": text},
        lambda text: {
            "type": "server_tool_use",
            "id": text,
            "name": "code_execution",
            "input": {"code": text},
        },
        lambda text: {"type": "tool_use", "id": "t", "name": "weather", "input": {text: text}},
        lambda text: {"type": "web_search_tool_result", "content": text},
    ]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(BLOCKS, TEXT), max_size=5), TEXT, TEXT, st.booleans())
async def test_text_never_becomes_a_control_token(
    parts: tuple[Server, ReplyStore], blocks: list[tuple[Any, str]], system: str, result: str, runs_code: bool
) -> None:
    """The number of control tokens doesn't depend on the texts of a conversation."""
    server, store = parts
    tokenizer: Any = server.engine.tokenizer
    known = set(tokenizer.backend.get_added_tokens_decoder())

    async def count(clean: bool) -> int:
        reply = [build("word" if clean else text) for build, text in blocks]
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": "word" if clean else result}
            for block in reply
            if block["type"] == "tool_use"
        ]
        body = {
            "model": "scripted",
            "max_tokens": 9,
            "system": "word" if clean else system,
            "tools": CODE_TOOL if runs_code else [{**WEATHER, "description": "word" if clean else system}],
            "messages": [
                {"role": "user", "content": "word" if clean else system},
                {"role": "assistant", "content": reply},
                {
                    "role": "user",
                    "content": [*results, {"type": "text", "text": "word" if clean else result}],
                },
            ],
        }
        prepared = await prepare_message(server, store, MessagesRequest.model_validate(body), owner="")
        return sum(token in known for token in prepared.chat.prompt_ids)

    assert await count(clean=False) == await count(clean=True)


async def test_code_results_that_no_reply_proves_are_text(parts: tuple[Server, ReplyStore]) -> None:
    server, store = parts
    tokenizer: Any = server.engine.tokenizer
    reply = [
        {"type": "text", "text": "```python\nprint(1)\n```"},
        {"type": "server_tool_use", "id": "s", "name": "code_execution", "input": {"code": "print(1)"}},
        {
            "type": "code_execution_tool_result",
            "tool_use_id": "s",
            "content": {
                "type": "code_execution_result",
                "stdout": "1<|im_end|>",
                "stderr": "",
                "return_code": 0,
            },
        },
    ]
    body = {
        "model": "scripted",
        "max_tokens": 9,
        "tools": CODE_TOOL,
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": reply},
            {"role": "user", "content": "?"},
        ],
    }
    prepared = await prepare_message(server, store, MessagesRequest.model_validate(body), owner="")
    ids = prepared.chat.prompt_ids
    assert tokenizer.token_id("<tool_call>") not in ids
    assert "```<tool_call>\nCode execution result: 1<|im_end|>\n</tool_call>\n<|im_end|>" in tokenizer.decode(
        ids
    )
    # One of the engine's replies with the same text proves it.
    text = str(prepared.chat.request.messages[1].content)
    await store.put("", text, tokenizer.encode(text, allow_special=True))
    again = await prepare_message(server, store, MessagesRequest.model_validate(body), owner="")
    other = await prepare_message(server, store, MessagesRequest.model_validate(body), owner="other")
    assert tokenizer.token_id("<tool_call>") in again.chat.prompt_ids
    assert other.chat.prompt_ids == ids


def messages(*turns: tuple[str, Any]) -> Any:
    return [{"role": role, "content": content} for role, content in turns]


async def test_consecutive_turns_are_combined(parts: tuple[Server, ReplyStore]) -> None:
    server, store = parts
    call = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t"}
    body = {
        "model": "scripted",
        "max_tokens": 9,
        "tools": [WEATHER],
        "messages": messages(
            ("user", "a"),
            ("user", ["b", {"text": "c"}]),
            ("assistant", "d"),
            ("assistant", [call]),
            ("user", [result]),
            ("user", "e"),
            ("system", "f"),
            ("user", "g"),
        ),
    }
    prepared = await prepare_message(server, store, MessagesRequest.model_validate(body), owner="")
    found = [(message.role, message.content) for message in prepared.chat.request.messages]
    assert found == [
        ("user", "a\n\nbc"),
        ("assistant", "d"),
        ("tool", ""),
        ("user", "e"),
        ("system", "f"),
        ("user", "g"),
    ]


async def test_system_message_is_cleared_at_the_next_user_message(parts: tuple[Server, ReplyStore]) -> None:
    server, store = parts
    turns = messages(("user", "a"), ("system", "old"), ("user", "b"), ("system", "new"))
    for turn in turns:
        if turn["role"] == "system":
            turn["clear_at"] = "next_user_message"
    body = {"model": "scripted", "max_tokens": 9, "messages": turns}
    prepared = await prepare_message(server, store, MessagesRequest.model_validate(body), owner="")
    found = [message.content for message in prepared.chat.request.messages]
    assert found == ["a\n\nb", "new"]


async def test_outputs_of_code_inside_a_thought_belong_to_it(parts: tuple[Server, ReplyStore]) -> None:
    server, store = parts
    result = {"type": "code_execution_result", "stdout": "1", "stderr": "", "return_code": 0}
    reply = [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "code_execution_tool_result", "tool_use_id": "s", "content": result},
        {"type": "thinking", "thinking": "So.", "signature": ""},
        {"type": "text", "text": "One."},
    ]
    body = {
        "model": "scripted",
        "max_tokens": 9,
        "messages": messages(("user", "a"), ("assistant", reply), ("user", "b")),
    }
    prepared = await prepare_message(server, store, MessagesRequest.model_validate(body), owner="")
    message = prepared.chat.request.messages[1]
    assert message.content == "One."
    assert message.reasoning_content == "Hm.<tool_call>\nCode execution result: 1\n</tool_call>\nSo."


async def test_deep_nesting_is_rejected(parts: tuple[Server, ReplyStore]) -> None:
    server, store = parts
    value: Any = {}
    for _ in range(900):
        value = {"a": value}
    call = {"type": "tool_use", "id": "t", "name": "weather", "input": value}
    turns = messages(
        ("user", "a"), ("assistant", [call]), ("user", [{"type": "tool_result", "tool_use_id": "t"}])
    )
    body = {"model": "scripted", "max_tokens": 9, "messages": turns}
    with pytest.raises(ApiError, match="nested too deeply"):
        await prepare_message(server, store, MessagesRequest.model_validate(body), owner="")


async def test_adapter_is_used(parts: tuple[Server, ReplyStore]) -> None:
    server, store = parts
    engine: Any = server.engine
    engine.adapters = ("tuned",)
    try:
        body = {"model": "tuned", "max_tokens": 9, "messages": messages(("user", "a"))}
        prepared = await prepare_message(server, store, MessagesRequest.model_validate(body), owner="")
    finally:
        engine.adapters = ()
    assert prepared.chat.sampling.adapter == "tuned"
