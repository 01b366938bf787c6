"""Forced calls of a model with random weights: the embedded engine makes every one of them valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall

from service.api.tools.choice import force_call
from service.deferral.policy import DeferralPolicy
from service.engines.settings import TransformersSettings
from service.engines.tokenizer import HFTokenizer
from service.engines.transformers.engine import TransformersEngine
from service.engines.transformers.grammar import GrammarCompiler
from tests.api.tools.test_choice import CITY, NODE, TREE, tool
from tests.support.scripted import ScriptedSandbox, printed
from tests.support.serving import make_app, serve

LIGHT: Any = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "level": {"enum": [1, 2, 30]}},
    "required": ["on", "level"],
    "additionalProperties": False,
}
COLOR: Any = {
    "type": "object",
    "properties": {"rgb": {"type": "array", "items": {"enum": [0, 255]}, "minItems": 3, "maxItems": 3}},
    "required": ["rgb"],
    "additionalProperties": False,
}
SCHEMAS = {"light": LIGHT, "color": COLOR}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()
]
NAMED: Any = {"type": "function", "function": {"name": "color"}}


async def test_forced_calls_are_valid(tiny_checkpoint: Path) -> None:
    engine = TransformersEngine(TransformersSettings(model=str(tiny_checkpoint), max_slots=2))
    box = ScriptedSandbox(lambda blocks: printed(""))
    async with serve(make_app(engine, box, DeferralPolicy(prompt="brief-v1"))) as served:
        for choice in ("required", NAMED):
            for code in ([], [{"type": "code_interpreter"}]):
                for seed in range(4):
                    completion = await served.openai.chat.completions.create(
                        model=engine.model_name,
                        messages=[{"role": "user", "content": "?"}],
                        tools=[*TOOLS, *code],
                        tool_choice=choice,
                        seed=seed,
                        max_tokens=200,
                    )
                    [reply] = completion.choices
                    assert reply.finish_reason == "tool_calls"
                    [call] = reply.message.tool_calls or []
                    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
                    assert call.function.name == "color" or choice == "required"
                    arguments = json.loads(call.function.arguments)
                    jsonschema_rs.validate(SCHEMAS[call.function.name], arguments)
    assert box.sessions == []


@pytest.mark.parametrize("parameters", [CITY, NODE, TREE, {}, None, {"properties": {"a": {}}}])
def test_schemas_of_forced_calls_can_be_enforced(
    tiny_checkpoint: Path, parameters: dict[str, object] | None
) -> None:
    compiler = GrammarCompiler(HFTokenizer(str(tiny_checkpoint)))
    for tools in ([tool("f", parameters)], [tool("f", parameters), tool("g", NODE), tool("h", TREE)]):
        schema = force_call("required", tools).schema
        assert schema is not None
        compiler.compile("json_schema", schema)
