"""Replies of the conformance server's engine, chosen by the prompt."""

from __future__ import annotations

from tests.support.scripted import EOS

CODE = "I compute it.\n```python\nx = 6 * 7\n```\nThen\n```python\nprint(x)\n```<tool_call>"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
SHELL_CALL = '<tool_call>\n{"name": "exec_command", "arguments": {"cmd": "echo sunny"}}\n</tool_call>'
CITIES = '[{"city": "Paris"}, {"city": "Rome"}]'
CALLING_CODE = f"I ask.\n```python\nall get_weather {CITIES}\n```<tool_call>"
BOTH_CITIES = "It is sunny in both."
SUNNY = "It is sunny in Paris."
ANSWER = "The answer is \\boxed{42}."
JSON_ANSWER = '{"city": "Paris", "degrees": 21}'
BOTH_ANSWER = "It is sunny in Paris, and the answer is \\boxed{42}."
THOUGHT = "<think>\nLet me see.\n</think>\n\n"


def reply(context: str) -> str:
    """The next turn after ``context``."""
    question = context.rsplit("user: ", 1)[-1]
    if context.endswith(":\n") and "The final answer" in question:
        return JSON_ANSWER + EOS
    if "6 * 7 and the weather" in question:
        return _code_call_code(question)
    if "both cities" in question:
        return BOTH_CITIES + EOS if "Code execution result" in question else CALLING_CODE
    if "Code execution result" in question:
        return ANSWER + EOS
    if "tool: " in question:
        return SUNNY + EOS
    if '"exec_command"' in context and "shell" in question:
        return SHELL_CALL + EOS
    if '"get_weather"' in context and "weather" in question:
        # Continue a call that was begun for the model.
        return (' {"city": "Paris"}}' if context.endswith('"arguments":') else CALL) + EOS
    if "JSON" in question:
        return JSON_ANSWER + EOS
    if "6 * 7" in question:
        return CODE
    if "Think" in question:
        return THOUGHT + "Hello." + EOS
    return "Hello there, how are you?" + EOS


def _code_call_code(question: str) -> str:
    """Run code, then call the function, then run code again."""
    runs = question.count("Code execution result")
    if "tool: " in question:
        return CODE if runs == 1 else BOTH_ANSWER + EOS
    if not runs:
        return CODE
    # The engine stops at the tag, because it could also be the marker.
    return CALL.removeprefix("<tool_call>") + EOS if question.endswith("<tool_call>") else f"Now {CALL}" + EOS
