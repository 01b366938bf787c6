from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.real_model.judge import Request, holds, judge, load


@pytest.mark.parametrize(("text", "answer", "expected"), [
    ("The result is 7,006,743.", "7006743", True),
    ("The result is 7 006 743.", "7006743", True),
    (r"\(\boxed{7{,}006{,}743}\)", "7006743", True),
    ("It is $667.95 in total", "667.95", True),
    ("It is 667.950", "667.95", True),
    ("17006743", "7006743", False),
    ("7006743.5", "7006743", False),
    ("-24", "24", False),
    ("24 buses", "24", True),
    ("It was a sunday.", "Sunday", True),
    ("Sundays", "Sunday", False),
    ("Numbers 1, 2 and 3", "3", True),
])  # fmt: skip
def test_calculator_values(text: str, answer: str, expected: bool) -> None:
    assert holds(text, answer) is expected


def ask(*, needs: bool, answer: str | None = None) -> Request:
    return Request("x", "arithmetic", [{"role": "user", "content": "?"}], needs, answer)


def tool(output: str) -> dict[str, Any]:
    return {"output": output, "status": "ok"}


def test_correct_answer_from_execution() -> None:
    message = {
        "content": "```python\n...\n```\n```output\n42\n```\nIt is 42.",
        "executed_tools": [tool("42")],
    }
    verdict = judge(ask(needs=True, answer="42"), message)
    assert (verdict.right, verdict.right_from_execution, verdict.empty) == (True, True, False)
    assert not any((verdict.missing_execution, verdict.unneeded_execution, verdict.pending_code))


def test_correct_guess_is_not_from_execution() -> None:
    verdict = judge(ask(needs=True, answer="42"), {"content": "It is 42."})
    assert (verdict.right, verdict.right_from_execution, verdict.missing_execution) == (True, False, True)


def test_output_without_an_answer() -> None:
    message = {"content": "```output\n42\n```\n", "executed_tools": [tool("42")]}
    verdict = judge(ask(needs=True, answer="42"), message)
    assert verdict.empty
    assert not verdict.right


def test_unneeded_code_and_pending_code() -> None:
    assert judge(ask(needs=False), {"content": "a", "executed_tools": [tool("1")]}).unneeded_execution
    assert judge(ask(needs=False), {"content": "a", "unflushed_blocks": [{"code": "1"}]}).pending_code
    assert judge(ask(needs=False), {"content": " "}).empty


def test_request_list_matches_its_description() -> None:
    requests = load()
    assert len(requests) == 120
    assert len({request.id for request in requests}) == 120
    counts = Counter(request.category for request in requests)
    assert counts["code_showing"] == 20
    assert sum(request.has_demo_call for request in requests) == 10
    for request in requests:
        assert request.messages[-1]["role"] == "user"
        assert request.needs_execution == (request.answer is not None)
