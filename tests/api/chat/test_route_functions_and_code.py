"""Functions and the code interpreter in one chat request, through the real SDK."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from service.deferral.policy import ASSISTANT_POLICY
from tests.api.chat.test_tools import MESSAGES, NOW, TOOLS, ULM
from tests.support.scripted import EOS, ResumingEngine, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, make_app, serve

CODE: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
BOTH: Any = [*TOOLS, CODE]
BLOCK = "```python\nprint(6 * 7)\n```"
SEEN = "\nCode execution result: 42\n</tool_call>\n"
FLUSH, CALLS = f"I compute.\n{BLOCK}<tool_call>", f"It is 42. Now\n{ULM}\n{NOW}{EOS}"


def sandbox() -> ScriptedSandbox:
    return ScriptedSandbox(lambda blocks: printed("42\n"))


async def ask(served: Served, messages: Any = MESSAGES, **options: Any) -> Any:
    asked = {"model": "scripted", "messages": messages, "tools": BOTH, **options}
    return await served.openai.chat.completions.create(**asked)


def results(message: Any) -> list[Any]:
    return [
        {"role": "tool", "tool_call_id": call.id, "content": f"result of {call.function.name}"}
        for call in message.tool_calls
    ]


def prompt(engine: ScriptedEngine, call: int = -1) -> str:
    return engine.tokenizer.decode(engine.calls[call][0])


async def test_code_and_calls_in_one_reply() -> None:
    engine = ResumingEngine(FLUSH, CALLS, f"Sunny, and 42.{EOS}")
    async with serve(make_app(engine, sandbox())) as served:
        first = await ask(served)
        [choice] = first.choices
        second = await ask(served, [*MESSAGES, choice.message, *results(choice.message)])
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == f"I compute.\n{BLOCK}<tool_call>{SEEN}It is 42. Now"
    assert [call.function.name for call in choice.message.tool_calls] == ["weather", "now"]
    [tool] = choice.message.executed_tools
    assert (tool["output"], tool["status"]) == ("42", "ok")
    assert choice.message.final_answer is None
    assert second.choices[0].message.content == "Sunny, and 42."
    # Functions and instruction are both in the prompt, and the functions' role beside code is explained.
    start = prompt(engine, 0)
    assert start.startswith('function: {"type": "function", "function": {"name": "weather"')
    assert "system: You may write Python and you may call functions." in start
    assert "Solve the problem below step by step." in start


async def test_history_has_the_sampled_ids() -> None:
    engine = ResumingEngine(FLUSH, CALLS, f"Done.{EOS}")
    async with serve(make_app(engine, sandbox())) as served:
        message = (await ask(served)).choices[0].message
        turns = [*MESSAGES, message, *results(message)]
        await ask(served, turns)
        reply = engine.tokenizer.encode(f"{FLUSH}{SEEN}It is 42. Now\n{ULM}\n{NOW}", allow_special=True)
        ids = engine.calls[-1][0]
        assert any(ids[at : at + len(reply)] == reply for at in range(len(ids)))
        assert "call: " not in prompt(engine)  # the calls are not written a second time
        assert "tool: result of weather\ntool: result of now\n" in prompt(engine)
        # Some clients encode the arguments in their own way, and drop what they don't know.
        calls = [
            {**call.to_dict(), "function": {"name": call.function.name, "arguments": '{"city":"Ulm"}'}}
            for call in message.tool_calls[:1]
        ]
        bare: Any = {"role": "assistant", "content": message.content, "tool_calls": calls}
        now = message.tool_calls[1].to_dict()
        await ask(served, [*MESSAGES, {**bare, "tool_calls": [*calls, now]}, *turns[2:]])
        assert engine.calls[-1][0] == ids
        await ask(served, turns)
        assert engine.calls[-1][0] == ids  # the same every time


async def test_reply_with_calls_alone_keeps_its_ids_too() -> None:
    engine = ResumingEngine(f"{ULM}{EOS}", f"Done.{EOS}")
    async with serve(make_app(engine, sandbox())) as served:
        message = (await ask(served)).choices[0].message
        await ask(served, [*MESSAGES, message, *results(message)])
    assert f"assistant: {ULM}\n" in prompt(engine)
    call_token = engine.tokenizer.token_id("<tool_call>")
    assert engine.calls[-1][0].count(call_token) == 1 + engine.calls[0][0].count(call_token)


async def test_edited_reply_is_plain_text() -> None:
    engine = ResumingEngine(FLUSH, CALLS, f"Done.{EOS}")
    async with serve(make_app(engine, sandbox())) as served:
        message = (await ask(served)).choices[0].message.to_dict()
        edited = {**message, "content": message["content"].replace("42", "43")}
        tools = [
            {"role": "tool", "tool_call_id": call["id"], "content": "r"} for call in message["tool_calls"]
        ]
        await ask(served, [*MESSAGES, edited, *tools])
    assert "Code execution result: 43" in prompt(engine)
    assert 'call: {"type": "function", "function": {"name": "weather"' in prompt(engine)
    tag = engine.tokenizer.token_id("<tool_call>")
    instruction_only = engine.calls[0][0].count(tag)
    assert engine.calls[-1][0].count(tag) == instruction_only


async def test_stream_in_order() -> None:
    engine = ResumingEngine(FLUSH, CALLS)
    async with serve(make_app(engine, sandbox())) as served:
        chunks = [chunk.choices[0] async for chunk in await ask(served, stream=True)]
        async with served.openai.chat.completions.stream(
            model="scripted", messages=MESSAGES, tools=BOTH
        ) as stream:
            joined: Any = (await stream.get_final_completion()).choices[0]
    kinds: list[str] = []
    for chunk in chunks:
        delta = chunk.delta.to_dict()
        if tools := delta.get("executed_tools"):
            kinds.append(tools[0]["status"])  # type: ignore[index]
        elif delta.get("content"):
            kinds.append("text")
        elif delta.get("tool_calls"):
            kinds.append(f"call {delta['tool_calls'][0]['index']}")  # type: ignore[index]
    order = [kind for at, kind in enumerate(kinds) if not at or kinds[at - 1] != kind]
    assert order == ["text", "pending", "running", "ok", "text", "call 0", "call 1"]
    assert chunks[-1].finish_reason == joined.finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in joined.message.tool_calls] == [
        {"city": "Ulm"},
        {},
    ]


async def test_general_assistant_runs_blocks_and_calls_functions() -> None:
    engine = ResumingEngine(BLOCK, f"It is 42.\n{ULM}{EOS}", f"Done.{EOS}")
    async with serve(make_app(engine, sandbox(), ASSISTANT_POLICY)) as served:
        [choice] = (await ask(served)).choices
        turns = [{"role": "system", "content": "Be brief."}, *MESSAGES]
        await ask(served, [*turns, choice.message, *results(choice.message)])
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == f"{BLOCK}\n```output\n42\n```\nIt is 42."
    assert "call the function with <tool_call>. The functions do not exist in Python." in prompt(engine)
    assert "is Rome.\n\nBe brief.\n" in prompt(engine)
    assert f"assistant: {BLOCK}\n```output\n42\n```\nIt is 42.\n{ULM}\n" in prompt(engine)


async def test_code_that_cannot_be_parsed_as_a_call_is_text() -> None:
    written = '<tool_call>\n{"name": "rain", "arguments": {}}\n</tool_call>'
    engine = ResumingEngine(f"{BLOCK}<tool_call>", written + EOS)
    async with serve(make_app(engine, sandbox())) as served:
        [choice] = (await ask(served)).choices
        assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)
        assert choice.message.content.endswith(f"{SEEN}{written}")
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(served, extra_body={"strict_tool_calls": True})
    assert caught.value.code == "tool_use_failed"


NAMED: Any = {"type": "function", "function": {"name": "weather"}}


def allowed(mode: str, *tools: Any) -> Any:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


@pytest.mark.parametrize(
    ("choice", "functions", "runs_code"),
    [
        ("auto", ["weather", "now"], True),
        ("none", [], False),
        (allowed("auto", NAMED), ["weather"], False),
        (allowed("auto", {"type": "code_interpreter"}), [], True),
        (allowed("auto", NAMED, {"type": "code_interpreter"}), ["weather"], True),
    ],
)
async def test_choice_of_tools(choice: Any, functions: list[str], runs_code: bool) -> None:
    engine = ResumingEngine(f"{BLOCK}{EOS}", f"Done.{EOS}")
    box = sandbox()
    async with serve(make_app(engine, box, ASSISTANT_POLICY)) as served:
        await ask(served, tool_choice=choice)
    offered = [line for line in prompt(engine, 0).splitlines() if line.startswith("function: ")]
    assert [json.loads(line[10:])["function"]["name"] for line in offered] == functions
    assert bool(box.sessions) is runs_code
    assert ("the code is executed for you" in prompt(engine, 0)) is runs_code


@pytest.mark.parametrize(
    ("choice", "prefix"),
    [
        (NAMED, '<tool_call>\n{"name": "weather", "arguments":'),
        ("required", "<tool_call>\n"),
        (
            allowed("required", NAMED, {"type": "code_interpreter"}),
            '<tool_call>\n{"name": "weather", "arguments":',
        ),
    ],
)
async def test_forced_call(choice: Any, prefix: str) -> None:
    call = '{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
    engine = ScriptedEngine(call.removeprefix(prefix.removeprefix("<tool_call>\n")) + EOS)
    engine.capabilities = frozenset({"json_schema"})
    box = sandbox()
    async with serve(make_app(engine, box)) as served:
        [reply] = (await ask(served, tool_choice=choice)).choices
        await ask(served, [*MESSAGES, reply.message, *results(reply.message)], tool_choice=choice)
    assert reply.finish_reason == "tool_calls"
    assert json.loads(reply.message.tool_calls[0].function.arguments) == {"city": "Ulm"}
    assert prompt(engine, 0).endswith(prefix)
    assert engine.calls[0][1].json_schema is not None
    assert box.sessions == []
    # The conversation has the same beginning as in replies that are not forced.
    assert "Solve the problem below step by step." in prompt(engine, 0)
    assert 'call: {"type": "function", "function": {"name": "weather"' in prompt(engine)


async def test_code_stays_exact_in_a_forced_turn() -> None:
    engine = ResumingEngine(FLUSH, f"It is 42.{EOS}", f' {{"city": "Ulm"}}}}\n</tool_call>{EOS}')
    async with serve(make_app(engine, sandbox())) as served:
        message = (await ask(served)).choices[0].message
        again: Any = [*MESSAGES, message, {"role": "user", "content": "And in Ulm?"}]
        await ask(served, again, tool_choice=NAMED)
    reply = engine.tokenizer.encode(f"{FLUSH}{SEEN}It is 42.", allow_special=True)
    ids = engine.calls[-1][0]
    assert any(ids[at : at + len(reply)] == reply for at in range(len(ids)))


async def test_single_call_of_parallel_ones() -> None:
    engine = ResumingEngine(f"{ULM}{NOW}{EOS}")
    async with serve(make_app(engine, sandbox())) as served:
        [choice] = (await ask(served, parallel_tool_calls=False)).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"]
    assert choice.finish_reason == "tool_calls"


async def test_deferral_options_with_functions() -> None:
    engine = ResumingEngine(*[FLUSH, f"\\boxed{{42}}{EOS}"] * 2)
    async with serve(make_app(engine, sandbox())) as served:
        enabled = {"extra_body": {"deferral": {"enabled": True, "max_turns": 3}}}
        [first] = (await ask(served, tools=TOOLS, **enabled)).choices
        [second] = (await ask(served, extra_body={"deferral": {"max_turns": 3, "eager": False}})).choices
    for choice in (first, second):
        assert choice.message.final_answer == "42"
        assert len(choice.message.executed_tools) == 1


async def test_constrained_answer_after_code_and_calls() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    check = "x"  # one token is sampled first, to check the schema
    engine = ResumingEngine(check, FLUSH, f"Now {ULM}{EOS}", check, f"All known.{EOS}", f"{{}}{EOS}")
    engine.capabilities = frozenset({"json_schema"})
    async with serve(make_app(engine, sandbox())) as served:
        [first] = (await ask(served, response_format=form)).choices
        messages = [*MESSAGES, first.message, *results(first.message)]
        [second] = (await ask(served, messages, response_format=form)).choices
    # A call has no form. The turns before the answer are its reasoning.
    assert (first.finish_reason, first.message.content) == ("tool_calls", None)
    assert "It is" not in first.message.reasoning
    assert "I compute." in first.message.reasoning
    assert (second.finish_reason, second.message.content) == ("stop", "{}")
    assert "All known." in second.message.reasoning
    assert [call[1].json_schema is not None for call in engine.calls][-1]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"extra_body": {"deferral": {"enabled": False}}}, "deferral.enabled"),
    ({"tools": TOOLS, "extra_body": {"deferral": {"max_turns": 2}}}, "deferral"),
    ({"tool_choice": "none", "extra_body": {"deferral": {"max_turns": 2}}}, "deferral"),
    ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [CODE], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [{**CODE, "container": {"type": "auto", "file_ids": ["f"]}}]}, "tools[0].container"),
    ({"tool_choice": allowed("required", {"type": "code_interpreter"})}, "tool_choice"),
    (
        {"tool_choice": allowed("auto", {"type": "function", "function": {"name": "rain"}})},
        "tool_choice.allowed_tools.tools[0].function.name",
    ),
    (
        {"tools": TOOLS, "tool_choice": allowed("auto", {"type": "code_interpreter"})},
        "tool_choice.allowed_tools.tools[0]",
    ),
    (
        {"tool_choice": allowed("auto", {"type": "mcp", "server_label": "x"})},
        "tool_choice.allowed_tools.tools[0].server_label",
    ),
    (
        {"tool_choice": allowed("auto", {"type": "web_search"})},
        "tool_choice.allowed_tools.tools[0]",
    ),
    ({"tool_choice": {**allowed("auto"), "extra": 1}}, "tool_choice.extra"),
    ({"tool_choice": {"type": "code_interpreter"}}, "tool_choice"),
]


@pytest.mark.parametrize(("options", "param"), BAD, ids=[str(i) for i in range(len(BAD))])
async def test_conflicts_are_rejected_by_name(options: dict[str, Any], param: str) -> None:
    async with serve(make_app(ScriptedEngine(EOS), sandbox())) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(served, **options)
    assert caught.value.param == param, caught.value
