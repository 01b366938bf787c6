"""The instruction that teaches the protocol, by version.

A checkpoint names the version that it was trained with in its ``deferral.json``; serving it with another one
would be another task. A version, once released, never changes: add a new one.
"""

from __future__ import annotations

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

PROMPTS: Final[dict[str, str]] = {"full-v1": _FULL, "brief-v1": _BRIEF}
DEFAULT_PROMPT: Final = "full-v1"


def instruct(problem: str, version: str = DEFAULT_PROMPT) -> str:
    """The user turn for ``problem``: the instruction, then the problem as it came.

    Raises:
        ValueError: no such version.
    """
    try:
        return PROMPTS[version] + problem
    except KeyError:
        raise ValueError(f"prompt version {version!r} is unknown; known are {', '.join(PROMPTS)}") from None
