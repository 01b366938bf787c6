"""The tool ``code_interpreter``: one item per flush, with OpenAI's events."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.deferral.policy import DeferralPolicy
from service.sandbox.base import ExecutionResult, SandboxError
from tests.support.response_events import checked, collected, kinds
from tests.support.responses_api import (
    ANSWER,
    CODE_TOOL,
    FIRST,
    MARKER,
    OUTPUTS,
    SECOND,
    SEEN,
    ask,
    engine,
    prompt,
    sandbox,
    serving,
)
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed

CODE = "x = 6 * 7\nprint(x)"


async def test_blocks_of_one_flush_are_one_item() -> None:
    async with serving(engine()) as served:
        events = await collected(await ask(served, tools=CODE_TOOL, stream=True, include=OUTPUTS))
    message, call, answer = checked(events)["output"]
    assert kinds(events, "output_text.delta") == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_item.added",  # the first block is closed: a call is pending
        "code_interpreter_call.in_progress",
        "code_interpreter_call_code.delta",
        "code_interpreter_call_code.delta",
        "output_text.done",  # the marker: the turn is over
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
        "completed",
    ]
    assert call == {
        "id": call["id"],
        "type": "code_interpreter_call",
        "status": "completed",
        "code": CODE,
        "container_id": "box-1",
        "outputs": [{"type": "logs", "logs": "42"}],
    }
    assert message["content"][0]["text"] == FIRST + SECOND
    assert answer["content"][0]["text"] == ANSWER


async def test_live_output_has_events_of_its_own_on_request() -> None:
    result = replace(printed("1\n2\n"), container="box-1")
    wanted = {"deferral": {"live_output": True}}
    events, usual = [
        await streamed(sandbox(result), extra_body=options) for options in (wanted, {"deferral": {}})
    ]
    name = "ih_grpo:code_interpreter_call_output.delta"
    final = checked(events)
    names = kinds(events)
    at = names.index("code_interpreter_call.interpreting")
    assert names[at + 1 : at + 4] == [name, name, "code_interpreter_call.completed"]
    assert events[at + 1] == {
        "type": name,
        "item_id": final["output"][1]["id"],
        "output_index": 1,
        "stream": "stdout",
        "delta": "1\n",
        "attempt": 1,
        "truncated": False,
        "sequence_number": at + 1,
    }
    assert [kind for kind in names if kind != name] == kinds(usual)
    assert name not in kinds(usual)


async def streamed(box: ScriptedSandbox, **options: Any) -> list[dict[str, Any]]:
    async with serving(engine(), box) as served:
        return await collected(await ask(served, tools=CODE_TOOL, stream=True, **options))


async def test_sdk_accumulates_a_response_with_live_output() -> None:
    async with (
        serving(engine()) as served,
        served.openai.responses.stream(
            model="scripted",
            input="6 * 7?",
            tools=CODE_TOOL,
            include=OUTPUTS,
            extra_body={"deferral": {"live_output": True}},
        ) as stream,
    ):
        types = [event.type async for event in stream]
        response: Any = await stream.get_final_response()
    assert "ih_grpo:code_interpreter_call_output.delta" in types
    assert response.output_text == FIRST + SECOND + ANSWER
    assert response.output[1].outputs[0].logs == "42"


async def test_call_is_streamed_at_once() -> None:
    async with serving(engine()) as served:
        events = await collected(await ask(served, tools=CODE_TOOL, stream=True))
    at = next(i for i, event in enumerate(events) if event["type"].endswith("call.in_progress"))
    written = "".join(event.get("delta", "") for event in events[:at])
    assert written == FIRST.removesuffix("\n")


async def test_outputs_are_included_on_request() -> None:
    async with serving(engine()) as served:
        events = await collected(await ask(served, tools=CODE_TOOL, stream=True))
        final = checked(events)
        plain = await served.openai.responses.retrieve(final["id"])
        full = await served.openai.responses.retrieve(final["id"], include=OUTPUTS)
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert done[1]["item"]["outputs"] is None
    assert final["output"][1]["outputs"] is None
    assert plain.output[1].outputs is None
    assert full.output[1].outputs[0].logs == "42"


async def test_prompt_has_the_instruction_and_usage_counts_observations() -> None:
    scripted = engine()
    async with serving(scripted, policy=DeferralPolicy(prompt="brief-v1")) as served:
        response = await ask(served, tools=CODE_TOOL)
    assert "Python that you may delay" in prompt(scripted, 0)
    assert prompt(scripted, 1) == prompt(scripted, 0) + FIRST + SECOND + MARKER + SEEN
    observed = response.usage.output_tokens_details.observation_tokens
    assert observed == len(SEEN) - len("</tool_call>") + 1


@pytest.mark.parametrize(
    ("status", "item_status"),
    [("ok", "completed"), ("error", "completed"), ("output_limit", "completed"), ("timeout", "failed")],
)
async def test_item_status_reflects_the_code(status: Any, item_status: str) -> None:
    box = sandbox(replace(printed("1\n"), status=status, container="box-1"))
    async with serving(engine(), box) as served:
        final = checked(await collected(await ask(served, tools=CODE_TOOL, stream=True)))
    assert final["output"][1]["status"] == item_status


class NoContainer(ScriptedSandbox):
    """Has no container to give."""

    def session(self, limits: Any, tools: object = None) -> Any:
        session: Any = super().session(limits)

        async def refuse(code: str) -> None:
            raise SandboxError("none free")

        session.invoke = refuse
        return session


async def test_container_id_is_empty_without_a_container() -> None:
    async with serving(engine(), NoContainer(lambda blocks: printed(""))) as served:
        events = await collected(await ask(served, tools=CODE_TOOL, stream=True, include=OUTPUTS))
    call = checked(events)["output"][1]
    assert (call["status"], call["container_id"]) == ("failed", "")
    assert "SandboxError" in call["outputs"][0]["logs"]


async def test_no_container_is_used_before_code() -> None:
    box = sandbox()
    async with serving(ScriptedEngine("It is \\boxed{42}." + EOS), box) as served:
        response = await ask(served, tools=CODE_TOOL)
    assert [item.type for item in response.output] == ["message"]
    assert box.sessions[0].pending == []


async def test_unflushed_code_has_no_output() -> None:
    async with serving(ScriptedEngine(FIRST + "so \\boxed{42}." + EOS)) as served:
        events = await collected(await ask(served, tools=CODE_TOOL, stream=True, include=OUTPUTS))
    final = checked(events)
    message, call = final["output"]
    assert final["status"] == "completed"
    assert message["content"][0]["text"] == FIRST + "so \\boxed{42}."
    assert (call["status"], call["code"], call["outputs"]) == ("incomplete", "x = 6 * 7", None)
    assert "code_interpreter_call.completed" not in kinds(events)


async def test_marker_without_pending_code_is_text() -> None:
    empty = "\nCode execution result: no code is pending\n</tool_call>\n"
    async with serving(ScriptedEngine("Hm." + MARKER, "So \\boxed{1}." + EOS)) as served:
        final = checked(await collected(await ask(served, tools=CODE_TOOL, stream=True)))
    [message] = final["output"]
    assert message["content"][0]["text"] == "Hm." + MARKER + empty + "So \\boxed{1}."


async def test_second_flush_starts_with_its_container_id() -> None:
    scripted = ScriptedEngine(FIRST + MARKER, FIRST + MARKER, ANSWER + EOS)
    async with serving(scripted) as served:
        events = await collected(await ask(served, tools=CODE_TOOL, stream=True))
    checked(events)
    added = [
        event["item"]["container_id"]
        for event in events
        if event["type"] == "response.output_item.added" and event["item"]["type"] == "code_interpreter_call"
    ]
    assert added == ["", "box-1"]


async def test_max_tool_calls_makes_the_response_incomplete() -> None:
    async with serving(ScriptedEngine(FIRST + MARKER)) as served:
        final = checked(await collected(await ask(served, tools=CODE_TOOL, stream=True, max_tool_calls=1)))
    assert final["incomplete_details"] == {"reason": "max_messages"}
    assert [item["type"] for item in final["output"]] == [
        "message",
        "code_interpreter_call",
        "message",
        "code_interpreter_call",
    ]
    assert [item["status"] for item in final["output"]] == [
        "completed",
        "completed",
        "incomplete",
        "incomplete",
    ]
    assert final["output"][2]["content"][0]["text"] == FIRST.removesuffix("\n") + "\n"


async def test_code_in_a_thought() -> None:
    scripted = ScriptedEngine(
        "<think>\nI run it.\n" + FIRST.removesuffix("\n") + MARKER,
        "It is 42.\n</think>\n\n" + ANSWER + EOS,
    )
    async with serving(scripted) as served:
        request = {"tools": CODE_TOOL, "stream": True, "reasoning": {"effort": "medium"}}
        final = checked(await collected(await ask(served, **request)))
    assert [item["type"] for item in final["output"]] == [
        "reasoning",
        "code_interpreter_call",
        "reasoning",
        "message",
    ]
    assert final["output"][2]["content"][0]["text"] == "It is 42."
    assert final["output"][3]["content"][0]["text"] == ANSWER


async def test_code_options_are_limited_by_the_operator() -> None:
    box = sandbox()
    async with serving(engine(), box) as served:
        options = {"deferral": {"eager": False, "run_limit_s": 0.5}}
        await ask(served, tools=CODE_TOOL, extra_body=options)
    assert (box.limits[0].eager, box.limits[0].run_limit_s) == (False, 0.5)


async def test_output_with_invalid_unicode_is_escaped() -> None:
    odd = ExecutionResult("\ud800\0", "", "ok", 0.0, 0.0, container="box-1")
    async with serving(engine(), sandbox(odd)) as served:
        response = await ask(served, tools=CODE_TOOL)
        again = await served.openai.responses.retrieve(response.id, include=OUTPUTS)
    assert again.output[1].outputs[0].logs == "\ud800\0"


async def test_execution_is_returned_on_request() -> None:
    include: Any = [*OUTPUTS, "code_interpreter_call.execution"]
    async with serving(engine()) as served:
        events = await collected(await ask(served, tools=CODE_TOOL, stream=True, include=include))
        _, call, _ = checked(events)["output"]
        execution = call["execution"]
        assert [block["code"] for block in execution["blocks"]] == ["x = 6 * 7", "print(x)"]
        assert (execution["status"], execution["output"], execution["waited_ms"]) == ("ok", "42", 100.0)
        assert execution["runs"] == [{"started_at": 1.0, "finished_at": 1.2}]
        url = f"/responses/{checked(events)['id']}"
        stored = await served.openai.get(f"{url}?include=code_interpreter_call.execution", cast_to=object)
        plain = await served.openai.get(url, cast_to=object)
        # The model reads the same conversation if a client sends such an item back.
        again = await ask(
            served, tools=CODE_TOOL, input=[*checked(events)["output"], {"role": "user", "content": "?"}]
        )
    calls: Any = [stored["output"][1], plain["output"][1]]  # type: ignore[index]
    assert calls[0]["execution"] == execution
    assert calls[0]["outputs"] is None
    assert "execution" not in calls[1]
    assert again.status == "completed"
