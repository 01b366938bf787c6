"""The client's tools and code execution in one message, through Anthropic's client."""

from __future__ import annotations

from typing import Any

from tests.api.messages.test_route import ULM
from tests.support.messages_api import CODE_TOOL, QUESTION, WEATHER, ask, checked, serving, streamed
from tests.support.responses_api import SEEN, prompt
from tests.support.scripted import EOS, ResumingEngine

BOTH: Any = [WEATHER, *CODE_TOOL]
BLOCK = "```python\nprint(6 * 7)\n```"
FLUSH = f"I compute.\n{BLOCK}<tool_call>"
KINDS = ["text", "server_tool_use", "code_execution_tool_result", "text", "tool_use"]


async def test_blocks_in_order_and_history_by_token_ids() -> None:
    engine = ResumingEngine(FLUSH, f"It is 42. Now\n{ULM}{EOS}", f"Sunny.{EOS}")
    async with serving(engine) as (_, client):
        reply = await ask(client, tools=BOTH)
        call: Any = reply.content[-1]
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        turns = [*QUESTION, reply.to_param(), {"role": "user", "content": [result]}]
        second = await ask(client, turns, tools=BOTH)
    assert [block.type for block in reply.content] == KINDS
    assert (reply.stop_reason, call.input) == ("tool_use", {"city": "Ulm"})
    assert (second.stop_reason, second.content[0].type) == ("end_turn", "text")
    ids = engine.calls[-1][0]
    sampled = engine.tokenizer.encode(f"{FLUSH}{SEEN}It is 42. Now\n{ULM}", allow_special=True)
    assert any(ids[at : at + len(sampled)] == sampled for at in range(len(ids)))
    assert "call: " not in prompt(engine)
    assert "tool: sunny" in prompt(engine)


async def test_stream() -> None:
    engine = ResumingEngine(FLUSH, f"It is 42. Now\n{ULM}{EOS}")
    async with serving(engine) as (_, client):
        final = checked(await streamed(client, tools=BOTH))
    assert [block["type"] for block in final["content"]] == KINDS
    assert final["stop_reason"] == "tool_use"


async def test_forced_call_runs_no_code() -> None:
    engine = ResumingEngine(f' {{"city": "Ulm"}}}}\n</tool_call>{EOS}')
    async with serving(engine) as (_, client):
        for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
            reply = await ask(client, tools=BOTH, tool_choice=choice)
            assert [block.type for block in reply.content] == ["tool_use"]
