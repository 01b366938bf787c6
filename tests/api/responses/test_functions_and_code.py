"""Functions and the code interpreter in one response."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from service.deferral.policy import ASSISTANT_POLICY
from tests.api.responses.test_functions import NOW, TOOLS, ULM
from tests.support.response_events import checked, collected, kinds
from tests.support.responses_api import CODE_TOOL, OUTPUTS, SEEN, ask, prompt, sandbox, serving
from tests.support.scripted import EOS, ResumingEngine, ScriptedEngine

BOTH: Any = [*TOOLS, *CODE_TOOL]
BLOCK = "```python\nprint(6 * 7)\n```"
FLUSH, CALLS = f"I compute.\n{BLOCK}<tool_call>", f"It is 42. Now\n{ULM}\n{NOW}{EOS}"
REPLY = f"{FLUSH}{SEEN}It is 42. Now\n{ULM}\n{NOW}"


def answers(output: list[Any]) -> Any:
    return [
        {"type": "function_call_output", "call_id": item["call_id"], "output": f"of {item['name']}"}
        for item in output
        if item["type"] == "function_call"
    ]


def contains(engine: ScriptedEngine, reply: str, call: int = -1) -> bool:
    """Return whether a prompt contains ``reply`` with its control tokens."""
    ids, wanted = engine.calls[call][0], engine.tokenizer.encode(reply, allow_special=True)
    return any(ids[at : at + len(wanted)] == wanted for at in range(len(ids)))


async def test_items_and_events_in_order() -> None:
    async with serving(ResumingEngine(FLUSH, CALLS)) as served:
        events = await collected(await ask(served, tools=BOTH, stream=True, include=OUTPUTS))
    final = checked(events)
    assert [item["type"] for item in final["output"]] == [
        "message",
        "code_interpreter_call",
        "message",
        "function_call",
        "function_call",
    ]
    first, code, second, ulm, now = final["output"]
    assert first["content"][0]["text"] == f"I compute.\n{BLOCK}"
    assert (code["code"], code["outputs"][0]["logs"]) == ("print(6 * 7)", "42")
    assert second["content"][0]["text"] == "It is 42. Now"
    assert [ulm["arguments"], now["arguments"]] == ['{"city": "Ulm"}', "{}"]
    assert final["status"] == "completed"
    assert kinds(events, "output_text.delta", "function_call_arguments.delta") == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_item.added",
        "code_interpreter_call.in_progress",
        "code_interpreter_call_code.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "code_interpreter_call_code.done",
        "code_interpreter_call.interpreting",
        "code_interpreter_call.completed",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        *["output_item.added", "function_call_arguments.done", "output_item.done"] * 2,
        "completed",
    ]


@pytest.mark.parametrize("policy", [None, ASSISTANT_POLICY])
async def test_history_has_the_sampled_ids(policy: Any) -> None:
    assistant = policy is not None
    turn = f"I compute.\n{BLOCK}" if assistant else FLUSH
    seen = "\n```output\n42\n```\n" if assistant else SEEN
    engine = ResumingEngine(turn, CALLS, f"Done.{EOS}")
    async with serving(engine, policy=policy) as served:
        first = (await ask(served, tools=BOTH, include=OUTPUTS)).to_dict()
        output: Any = first["output"]
        await ask(served, answers(output), tools=BOTH, previous_response_id=first["id"])
        stored = engine.calls[-1][0]
        question: Any = {"role": "user", "content": "6 * 7?"}
        await ask(served, [question, *output, *answers(output)], tools=BOTH)
        by_hand = engine.calls[-1][0]
        bare = [{k: v for k, v in item.items() if k != "outputs"} for item in output]
        await ask(served, [question, *bare, *answers(output)], tools=BOTH)
        without_outputs = engine.calls[-1][0]
    assert contains(engine, f"{turn}{seen}It is 42. Now\n{ULM}\n{NOW}")
    assert stored == by_hand == without_outputs
    assert "call: " not in prompt(engine)
    assert "tool: of weather\ntool: of now\n" in prompt(engine)


async def test_edited_items_are_plain_text() -> None:
    engine = ResumingEngine(FLUSH, CALLS, f"Done.{EOS}")
    async with serving(engine) as served:
        output: Any = (await ask(served, tools=BOTH, include=OUTPUTS)).to_dict()["output"]
        output[3]["arguments"] = '{"city": "Oslo"}'
        question: Any = {"role": "user", "content": "6 * 7?"}
        await ask(served, [question, *output, *answers(output)], tools=BOTH)
    assert not contains(engine, ULM)
    assert f"I compute.\n{BLOCK}<tool_call>{SEEN}It is 42. Now\ncall: " in prompt(engine)
    assert not contains(engine, FLUSH)


async def test_three_turns_by_previous_response() -> None:
    engine = ResumingEngine(
        FLUSH, f"Now {ULM}{EOS}", f"{BLOCK}<tool_call>", f"So 42. {NOW}{EOS}", f"Done.{EOS}"
    )
    async with serving(engine) as served:
        first = await ask(served, tools=BOTH)
        second = await ask(
            served, answers(first.to_dict()["output"]), tools=BOTH, previous_response_id=first.id
        )
        third = await ask(
            served, answers(second.to_dict()["output"]), tools=BOTH, previous_response_id=second.id
        )
    assert third.output_text == "Done."
    assert contains(engine, f"{FLUSH}{SEEN}Now {ULM}")
    assert contains(engine, f"{BLOCK}<tool_call>{SEEN}So 42. {NOW}")


async def test_stored_reply_survives_a_request_without_code() -> None:
    engine = ResumingEngine(FLUSH, CALLS, f"Done.{EOS}")
    async with serving(engine) as served:
        first = await ask(served, tools=BOTH)
        await ask(served, answers(first.to_dict()["output"]), tools=TOOLS, previous_response_id=first.id)
    assert contains(engine, REPLY)


WEATHER: Any = {"type": "function", "name": "weather"}


def allowed(mode: str, *tools: Any) -> Any:
    return {"type": "allowed_tools", "mode": mode, "tools": list(tools)}


@pytest.mark.parametrize(
    ("choice", "functions", "runs_code"),
    [
        ("auto", 2, True),
        ("none", 0, False),
        (allowed("auto", WEATHER), 1, False),
        (allowed("auto", {"type": "code_interpreter"}), 0, True),
        (allowed("auto", WEATHER, {"type": "code_interpreter"}), 1, True),
    ],
)
async def test_choice_of_tools(choice: Any, functions: int, runs_code: bool) -> None:
    engine, box = ResumingEngine(f"{BLOCK}{EOS}", f"Done.{EOS}"), sandbox()
    async with serving(engine, box, policy=ASSISTANT_POLICY) as served:
        response = await ask(served, tools=BOTH, tool_choice=choice)
    assert prompt(engine, 0).count("function: ") == functions
    assert bool(box.sessions) is runs_code
    assert len(response.tools) == 3
    echoed = response.to_dict()["tool_choice"]
    assert echoed == choice


@pytest.mark.parametrize("choice", ["required", WEATHER, allowed("required", WEATHER)])
async def test_forced_call(choice: Any) -> None:
    engine = ScriptedEngine(f' {{"city": "Ulm"}}}}\n</tool_call>{EOS}')
    box = sandbox()
    tools = BOTH if choice != "required" else [TOOLS[0], *CODE_TOOL]
    async with serving(engine, box) as served:
        response = await ask(served, tools=tools, tool_choice=choice)
    assert [item.type for item in response.output] == ["function_call"]
    assert box.sessions == []


async def test_single_call_of_parallel_ones() -> None:
    async with serving(ResumingEngine(f"{ULM}\n{NOW}{EOS}")) as served:
        response = await ask(served, tools=BOTH, parallel_tool_calls=False)
    assert [item.type for item in response.output] == ["function_call"]


async def test_call_that_cannot_be_parsed_is_a_message() -> None:
    written = "<tool_call>\nweather(Ulm)\n</tool_call>"
    async with serving(ResumingEngine(FLUSH, written + EOS)) as served:
        final = checked(await collected(await ask(served, tools=BOTH, stream=True)))
    assert [item["type"] for item in final["output"]] == ["message", "code_interpreter_call", "message"]
    assert final["output"][2]["content"][0]["text"] == written


async def test_background_response_with_both() -> None:
    engine = ResumingEngine(FLUSH, CALLS)
    async with serving(engine) as served:
        stream = await ask(served, tools=BOTH, background=True, stream=True)
        final = checked(await collected(stream))
        kept = await served.openai.responses.retrieve(final["id"])
    assert [item.type for item in kept.output] == [item["type"] for item in final["output"]]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": allowed("required", {"type": "code_interpreter"})}, "tool_choice"),
    ({"tool_choice": allowed("auto", {"type": "function", "name": "rain"})}, "tool_choice.tools[0].name"),
    (
        {"tool_choice": allowed("auto", {"type": "mcp", "server_label": "x"})},
        "tool_choice.tools[0].server_label",
    ),
    ({"tool_choice": allowed("auto", {"type": "web_search"})}, "tool_choice.tools[0]"),
    (
        {"tools": TOOLS, "tool_choice": allowed("auto", {"type": "code_interpreter"})},
        "tool_choice.tools[0]",
    ),
    (
        {"tool_choice": allowed("auto", WEATHER), "extra_body": {"deferral": {"max_turns": 2}}},
        "deferral",
    ),
    ({"tools": TOOLS, "text": {"format": {"type": "json_object"}}}, "text.format"),
]


@pytest.mark.parametrize(("options", "param"), BAD, ids=[str(i) for i in range(len(BAD))])
async def test_conflicts_are_rejected_by_name(options: dict[str, Any], param: str) -> None:
    async with serving(ScriptedEngine(EOS)) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(served, **{"tools": BOTH, **options})
    assert caught.value.param == param, caught.value
