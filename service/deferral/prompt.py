"""Versions of the instruction that explains the protocol to the model.

``deferral.json`` names the version that a checkpoint was trained with. Serving it with another version would
be a different task. A released version never changes: add a new one instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# For general Qwen3 checkpoints. Every point in it is needed (arXiv 2605.18500, appendix on prompts).
_FULL: Final = """\
Solve the problem below step by step. You may write Python while you reason, and you decide when it runs. \
Put the final answer in \\boxed{}.

How the Python works:
- Write a block between ```python and ```. All blocks share one namespace, like the cells of one \
notebook: a later block can use the names of the earlier ones.
- A block does not run when you close it. It is delayed, so it needs no print; go on reasoning with the \
names of its variables instead of their values.
- Write <tool_call> right after a closing ``` to run all delayed blocks in order. You are then shown what \
they printed.
- Delay by default. Run only where you must read a value to go on; above all, run before you state \
the final value.
- Print what you must see, and nothing else. Never make up an output: a value that has not been shown to you \
is not known.
- Never write the same block twice, nor two blocks with no reasoning between them.

Example. Problem: a box holds 17 rows of 23 jars, and 58 jars are broken; how many are whole?
First I name the number of all jars.
```python
jars = 17 * 23
```
The whole ones are jars minus the 58 broken ones, and that is the value to read.
```python
print(jars - 58)
```<tool_call>
Code execution result: 333
</tool_call>
There are \\boxed{333} whole jars.

Problem: """

# For checkpoints that have the protocol in their weights, such as the quickstart one.
_BRIEF: Final = "Solve it with Python that you may delay. Problem: "

# For checkpoints that were not trained to defer. Part of the system message. With the two examples, small
# models write code instead of guessing, and write none if it is not needed.
_ASSISTANT: Final = """\
You are a helpful assistant. When a question needs a calculation, you write Python code in a ```python block \
that prints the result, and the code is executed for you. When it does not, you just answer.

Examples:
User: What is 348 * 27 - 15?
Assistant: ```python
print(348 * 27 - 15)
```
User: What is the capital of Italy?
Assistant: The capital of Italy is Rome."""


# The same with functions of the client, which the chat template lists after the system message.
_ASSISTANT_WITH_FUNCTIONS: Final = """\
You are a helpful assistant. When a question needs a calculation, you write Python code in a ```python block \
that prints the result, and the code is executed for you. When it needs one of the functions listed below, \
you call the function with <tool_call>. The functions do not exist in Python. When it needs neither, you \
just answer.

Examples:
User: What is 348 * 27 - 15?
Assistant: ```python
print(348 * 27 - 15)
```
User: What is the capital of Italy?
Assistant: The capital of Italy is Rome."""

# For checkpoints with the protocol, whose instruction is in the user's turn. Part of the system message.
_FUNCTIONS_BESIDE_CODE: Final = """\
You may write Python and you may call functions. <tool_call> after ```python blocks that have not run yet \
runs them. When no block is waiting, <tool_call> begins the call of a function: a JSON object with its name \
and arguments, then </tool_call>. The functions do not exist in Python."""


@dataclass(frozen=True, slots=True)
class ControlText:
    """Text written by the server, in which the spelling of a control token is encoded as that token."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Token ids of an earlier reply, inserted exactly as they were sampled."""

    ids: tuple[int, ...]


Content = str | Sequence[str | ControlText | TokenIds]
"""Content of a message. In a ``str`` the spelling of a control token is ordinary text."""

PROMPTS: Final[dict[str, str]] = {"full-v1": _FULL, "brief-v1": _BRIEF, "assistant-v1": _ASSISTANT}
SYSTEM_PROMPTS: Final = frozenset({"assistant-v1"})
"""Versions that belong in the system message. The others precede the last user message."""
WITH_FUNCTIONS: Final = {"assistant-v1": _ASSISTANT_WITH_FUNCTIONS}
"""Texts of the system versions for requests with functions."""
DEFAULT_PROMPT: Final = "full-v1"


def instruct(problem: str, version: str = DEFAULT_PROMPT) -> str:
    """Return the text of the user turn for ``problem``: the instruction, then the unchanged problem.

    Raises:
        ValueError: unknown version.
    """
    return _prompt(version) + problem


def with_instruction(
    messages: Sequence[dict[str, object]], version: str, tools: str = "", *, functions: bool = False
) -> list[dict[str, object]]:
    """Return ``messages`` with the instruction, in the system message or before the last user message.

    Without a user message it precedes the last system message, which is then the problem.

    If the client sent a system message, it follows the instruction.

    Args:
        messages: turns in the chat template's form.
        version: of the instruction.
        tools: list of functions that code can call. It follows the instruction in a system message and
            precedes it before a user message. It comes from other parties, so the spelling of a control
            token in it is ordinary text.
        functions: the model may also call functions; the system message explains both.

    Raises:
        ValueError: unknown version, or ``messages`` has neither a user nor a system message.
    """
    turns = list(messages)
    if version in SYSTEM_PROMPTS:
        text = WITH_FUNCTIONS[version] if functions else _prompt(version)
        return _with_system(turns, text, tools)
    last = last_request(turns)
    if last is None:
        raise ValueError("found no user or system message to answer")
    instruction = [*([f"{tools}\n\n"] if tools else []), ControlText(_prompt(version))]
    turns[last] = {**turns[last], "content": [*instruction, *_parts(turns[last]["content"])]}
    return _with_system(turns, _FUNCTIONS_BESIDE_CODE) if functions else turns


def last_request(turns: Sequence[dict[str, object]]) -> int | None:
    """Return the index of the last user turn, else of the last system turn, else None."""
    by_role = {turn["role"]: index for index, turn in enumerate(turns)}
    return by_role.get("user", by_role.get("system"))


def _with_system(turns: list[dict[str, object]], text: str, tools: str = "") -> list[dict[str, object]]:
    """Return ``turns`` with ``text`` and ``tools`` at the beginning of the system message."""
    own = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else ""
    listed = [f"\n\n{tools}"] if tools else []
    content = [ControlText(text), *listed, *(["\n\n", *_parts(own)] if own else [])]
    return [{"role": "system", "content": content}, *turns]


def _parts(content: object) -> list[str | ControlText | TokenIds]:
    return [content] if isinstance(content, str) else list(content)  # type: ignore[call-overload]


def _prompt(version: str) -> str:
    try:
        return PROMPTS[version]
    except KeyError:
        raise ValueError(
            f"unknown prompt version {version!r}; known versions: {', '.join(PROMPTS)}"
        ) from None
