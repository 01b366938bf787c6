"""Fields of a chat request on a real model: its own tokens, its own text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer

from tests.e2e.test_solving import problem_of, question

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**question(problem_of("two_products")), temperature=0, **options)


def test_stop_string_ends_the_episode_at_any_token_boundary(client: openai.OpenAI) -> None:
    whole = ask(client, logprobs=True)
    text = whole.choices[0].message.content
    sampled = "".join(item.token for item in whole.choices[0].logprobs.content)
    assert sampled == text.replace(observation(whole), "")
    answer = text.rpartition("</tool_call>\n")[2]
    for stop in (answer[3:9], answer[:20], "```<tool_call>", "print("):
        stopped = ask(client, stop=[stop, "never written"])
        [choice] = stopped.choices
        assert choice.message.content == text[: text.index(stop)]
        assert choice.finish_reason == "stop"
        ran = [tool["status"] for tool in getattr(choice.message, "executed_tools", ())]
        assert ran == (["ok"] if stop in answer else [])


def observation(completion: Any) -> str:
    [tool] = completion.choices[0].message.executed_tools
    return f"\nCode execution result: {tool['output']}\n</tool_call>\n"


def test_sampling_options_change_the_tokens(client: openai.OpenAI, checkpoint: Path) -> None:
    whole = ask(client, logprobs=True, top_logprobs=3)
    first = whole.choices[0].logprobs.content[0]
    assert len(first.top_logprobs) == 3
    assert first.top_logprobs[0].token == first.token
    token_id = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(first.token).ids[0]
    barred = ask(client, logit_bias={str(token_id): -100}, logprobs=True, max_tokens=1)
    assert barred.choices[0].logprobs.content[0].token == first.top_logprobs[1].token


def test_seed_reproduces_distinct_choices(client: openai.OpenAI) -> None:
    asked = question(problem_of("product"), temperature=1.5, n=3, seed=7, max_tokens=40)
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) > 1


def test_named_function_is_called_or_the_error_is_reported(client: openai.OpenAI) -> None:
    # The quickstart model has never seen a function: what it makes of one must still come out right.
    tool: Any = {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "required": ["a"]}},
    }
    named: Any = {"type": "function", "function": {"name": "add"}}
    asked = question(problem_of("product"), tools=[tool], tool_choice=named, max_tokens=60)
    try:
        choice = client.chat.completions.create(**asked).choices[0]
    except openai.BadRequestError as error:
        assert error.code == "tool_use_failed"  # noqa: PT017  (either end is right)
    else:
        assert choice.finish_reason in ("tool_calls", "length")
