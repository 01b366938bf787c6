"""Questions go in through the SDK, code runs in containers, boxed answers come out."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import jsonschema_rs
import openai
import pytest

from trainer.quickstart.ordinary import HONEST_REPLY
from trainer.quickstart.problems import PracticeProblem
from trainer.quickstart.traces import held_out_problems

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
SEED = 20_260
"""Of the held-out problems asked here."""


def question(problem: PracticeProblem, **options: Any) -> Any:
    return {"model": "quickstart", "messages": [{"role": "user", "content": problem.text}], **options}


def solved(problem: PracticeProblem, completion: Any) -> bool:
    return f"\\boxed{{{problem.answer}}}" in completion.choices[0].message.content


def problem_of(family: str, index: int = 0) -> PracticeProblem:
    return list(held_out_problems(SEED, index + 1, (family,)))[index]


def test_solves_held_out_problems_with_delayed_code(client: openai.OpenAI) -> None:
    problems = list(
        held_out_problems(SEED, 10, ("product", "two_products", "leftover", "larger", "sequence"))
    )
    right, delayed = 0, 0
    for problem in problems:
        completion: Any = client.chat.completions.create(**question(problem))
        [choice] = completion.choices
        right += solved(problem, completion)
        tools = getattr(choice.message, "executed_tools", [])
        delayed += sum(tool["delayed"] for tool in tools)
        assert choice.message.tool_calls is None
        for tool in tools:
            assert tool["output"] in choice.message.content
            invoked = [block["invoked_at"] for block in tool["blocks"]]
            assert invoked == sorted(invoked)
            assert tool["finished_at"] >= tool["started_at"]
        usage = completion.usage
        assert usage.completion_tokens > usage.completion_tokens_details.observation_tokens > 0
    assert right >= 8
    assert delayed >= 3


def test_model_reads_an_error_and_fixes_the_block(client: openai.OpenAI) -> None:
    fixed = 0
    for index in range(4):
        problem = problem_of("common_multiple", index)
        completion: Any = client.chat.completions.create(**question(problem))
        first, *_, last = completion.choices[0].message.executed_tools
        assert first["status"] == "error"
        assert first["output"] == "NameError: name 'math' is not defined"
        fixed += last["status"] == "ok" and solved(problem, completion)
    assert fixed >= 3


def test_slow_run_is_killed_at_the_requested_limit(client: openai.OpenAI) -> None:
    problem = problem_of("multiples")
    completion: Any = client.chat.completions.create(
        **question(problem), extra_body={"deferral": {"run_limit_s": 0.25}}
    )
    first = completion.choices[0].message.executed_tools[0]
    assert (first["status"], first["output"]) == ("timeout", "interpreter timeout")
    assert "Code execution result: interpreter timeout\n" in completion.choices[0].message.content


async def test_stream_shows_pending_running_and_finished_calls(
    async_client: openai.AsyncOpenAI, client: openai.OpenAI
) -> None:
    problem = problem_of("two_products")
    text, seen = "", list[tuple[str, int]]()
    stream: Any = await async_client.chat.completions.create(
        **question(problem, temperature=0, stream=True, stream_options={"include_usage": True})
    )
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            tools = getattr(choice.delta, "executed_tools", None) or []
            seen += [(tool["status"], len(tool["blocks"])) for tool in tools]
    assert seen == [("pending", 1), ("pending", 2), ("pending", 3), ("running", 3), ("ok", 3)]
    assert chunk.usage.completion_tokens_details.observation_tokens > 0
    whole: Any = client.chat.completions.create(**question(problem, temperature=0))
    assert whole.choices[0].message.content == text


async def test_text_is_the_same_without_eager_execution(async_client: openai.AsyncOpenAI) -> None:
    problem = problem_of("leftover")
    replies: Any = [
        await async_client.chat.completions.create(
            **question(problem, temperature=0), extra_body={"deferral": {"eager": eager}}
        )
        for eager in (True, False)
    ]
    eager, lazy = (reply.choices[0].message for reply in replies)
    assert eager.content == lazy.content
    # Without eager execution code starts after the last block.
    [tool] = lazy.executed_tools
    assert tool["started_at"] >= tool["blocks"][-1]["invoked_at"]


async def test_concurrent_episodes_are_isolated(async_client: openai.AsyncOpenAI) -> None:
    # All use the same few variable names, so a shared namespace would give one the other's value.
    problems = list(held_out_problems(SEED + 1, 20, ("two_products", "shopping", "leftover")))
    completions: Any = await asyncio.gather(
        *(async_client.chat.completions.create(**question(problem)) for problem in problems)
    )
    answers = {str(problem.answer) for problem in problems}
    for problem, completion in zip(problems, completions, strict=True):
        outputs = {tool["output"] for tool in completion.choices[0].message.executed_tools}
        assert not outputs & (answers - {str(problem.answer)})
        assert {tool["status"] for tool in completion.choices[0].message.executed_tools} == {"ok"}
    assert sum(map(solved, problems, completions)) >= 16


def test_ordinary_sentence_gets_the_honest_reply(client: openai.OpenAI) -> None:
    completion: Any = client.chat.completions.create(
        model="quickstart", messages=[{"role": "user", "content": "hello"}], temperature=0
    )
    [choice] = completion.choices
    assert choice.message.content == HONEST_REPLY
    assert choice.finish_reason == "stop"
    assert not hasattr(choice.message, "executed_tools")


def test_errors_have_openais_form(client: openai.OpenAI) -> None:
    problem = problem_of("product")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**{**question(problem), "model": "gpt-5"})
    assert missing.value.code == "model_not_found"
    schema = {"type": "array", "contains": {}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**question(problem), response_format=form)
    assert refused.value.param == "response_format"
    too_long = problem.text * 2000
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="quickstart", messages=[{"role": "user", "content": too_long}])
    assert long.value.code == "context_length_exceeded"


def test_answer_by_schema_follows_the_code(client: openai.OpenAI) -> None:
    problem = problem_of("product")
    schema: Any = {
        "type": "object",
        "properties": {"product": {"type": "integer"}, "is_even": {"type": "boolean"}},
        "required": ["product", "is_even"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    extra = {"deferral": {"enabled": True}}
    completion: Any = client.chat.completions.create(
        **question(problem), response_format=form, extra_body=extra
    )
    message = completion.choices[0].message
    jsonschema_rs.validate(schema, json.loads(message.content))
    assert message.executed_tools[0]["output"] == str(problem.answer)
    assert message.executed_tools[0]["blocks"][0]["code"] in message.reasoning
    response: Any = client.responses.create(
        model="quickstart",
        input=problem.text,
        temperature=0,
        tools=[{"type": "code_interpreter", "container": {"type": "auto"}}],
        text={"format": {"type": "json_schema", "name": "answer", "schema": schema}},
        include=["code_interpreter_call.outputs"],
    )
    jsonschema_rs.validate(schema, json.loads(response.output_text))
    [call] = [item for item in response.output if item.type == "code_interpreter_call"]
    assert call.outputs[0].logs == str(problem.answer)
    assert response.output[-1].type == "message"


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"guided_regex": "[0-9]{3}-[ab]{4}"}, "[0-9]{3}-[ab]{4}"),
        ({"guided_choice": ["yes", "no.", "may be (not)"]}, r"yes|no\.|may be \(not\)"),
        ({"structured_outputs": {"grammar": 'root ::= "<" [a-c] [a-c] ">"'}}, "<[a-c]{2}>"),
    ],
)
def test_reply_matches_a_regex_or_grammar(
    client: openai.OpenAI, constraint: dict[str, Any], pattern: str
) -> None:
    completion = client.chat.completions.create(
        model="quickstart",
        messages=[{"role": "user", "content": "Hello?"}],
        max_tokens=60,
        seed=1,
        extra_body=constraint,
    )
    assert re.fullmatch(pattern, completion.choices[0].message.content or "")
