"""A scripted server of the Responses API, and its requests."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from service.sandbox.base import ExecutionResult
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, make_app, serve

FIRST = "Let\n```python\nx = 6 * 7\n```\n"
SECOND = "then\n```python\nprint(x)\n```"
MARKER = "<tool_call>"
SEEN = "\nCode execution result: 42\n</tool_call>\n"
ANSWER = "So \\boxed{42}."
CODE_TOOL: Any = [{"type": "code_interpreter", "container": {"type": "auto"}}]
OUTPUTS: Any = ["code_interpreter_call.outputs"]


def engine(delay_s: float = 0.0) -> ScriptedEngine:
    """An engine that defers two blocks, flushes them together, and answers."""
    return ScriptedEngine(FIRST + SECOND + MARKER, ANSWER + EOS, delay_s=delay_s)


def sandbox(result: ExecutionResult | None = None, delay_s: float = 0.0) -> ScriptedSandbox:
    answer = result or replace(printed("42\n"), container="box-1")
    return ScriptedSandbox(lambda blocks: answer, delay_s=delay_s)


def serving(
    scripted: ScriptedEngine, box: ScriptedSandbox | None = None, key: str = "none", **options: Any
) -> AbstractAsyncContextManager[Served]:
    return serve(make_app(scripted, box or sandbox(), **options), key)


async def ask(served: Served, question: Any = "6 * 7?", **options: Any) -> Any:
    return await served.openai.responses.create(**{"model": "scripted", "input": question, **options})


def prompt(scripted: ScriptedEngine, call: int = -1) -> str:
    """Return the prompt of one of the engine's calls."""
    return scripted.tokenizer.decode(scripted.calls[call][0])
