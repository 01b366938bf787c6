from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.scanner import BlockClosed, FenceScanner, MarkerSeen, ScanEvent

MARKER = "<tool_call>"
PIECES = [
    "```python\n", "```py\n", "```\n", "```", "``", "`", "```text\n", "  ```python\n", "x = 1\n", "\n",
    "\r\n", "s = '```'\n", MARKER, "<tool_", "call>", " ", "\\boxed{3}", "é", "def f():\n    return 1\n",
    "Python\n",
]  # fmt: skip


def scan(text: str, cuts: list[int] | None = None) -> list[ScanEvent]:
    scanner = FenceScanner(MARKER)
    bounds = [0, *sorted(cuts or []), len(text)]
    return [event for a, b in pairwise(bounds) for event in scanner.feed(text[a:b])]


def codes(text: str) -> list[str]:
    return [event.code for event in scan(text) if isinstance(event, BlockClosed)]


@given(st.data())
def test_events_do_not_depend_on_chunks(data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(PIECES), max_size=30)))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=10))
    assert scan(text, cuts) == scan(text) == scan(text, list(range(len(text))))


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_offsets_are_those_of_the_fences(text: str) -> None:
    for event in scan(text):
        if isinstance(event, BlockClosed):
            block = text[event.start : event.end]
            assert block.lstrip(" \t").removeprefix("```").strip().lower().startswith("py")
            assert block.endswith("```")
        else:
            assert text[: event.end].endswith(MARKER)


def test_the_third_backtick_closes_a_block() -> None:
    scanner = FenceScanner(MARKER)
    assert scanner.feed("a\n```python\nx = 1\n``") == []
    assert scanner.feed("`") == [BlockClosed("x = 1", 2, 21)]


def test_finds_a_marker_right_after_the_fence() -> None:
    text = f"```py\nprint(1)\n```{MARKER}"
    assert scan(text) == [BlockClosed("print(1)", 0, 18), MarkerSeen(len(text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\n```", [""]),
        ("```PYTHON \nx\n```", ["x"]),
        ("```python3\nx\n```", []),
        ("```text\n```python\nx\n```", ["x"]),
        ("```text\ny\n```\n```python\nx\n```", ["x"]),
        ("```\ny\n```python\nx\n```", ["x"]),
        ("1. item\n   ```python\n   if x:\n       y\n   ```", ["if x:\n    y"]),
        ("```python\nprint('```')\n```", ["print('```')"]),
        ("```python\nx = 1", []),
        ("say ```python\nx\n```", []),
        ("```python\na\n```\n\n```python\nb\n```", ["a", "b"]),
        ("```python\na\n```   \ntext\n```python\nb\n```", ["a", "b"]),
        ("inline ``` ticks\n```python\na\n```", ["a"]),
    ],
)
def test_finds_blocks(text: str, expected: list[str]) -> None:
    assert codes(text) == expected


@pytest.mark.parametrize(
    "text",
    [f"```python\ns = '{MARKER}'\n", f"```text\n{MARKER}\n", "<tool_call", "<tool_call\n>", "</tool_call>"],
)
def test_ignores_text_that_is_not_a_marker(text: str) -> None:
    assert not [event for event in scan(text) if isinstance(event, MarkerSeen)]


LONG = 200_000


@pytest.mark.parametrize("text", ["x" * LONG, "`" * LONG, "```python\n" + "x`" * LONG, " " * LONG + "```"])
def test_a_long_line_takes_linear_time(text: str) -> None:
    """A line of 200,000 characters, fed one by one: takes minutes if each examines the whole line."""
    whole, cut = FenceScanner("<tool_call>"), FenceScanner("<tool_call>")
    events = [event for char in text for event in cut.feed(char)]
    assert events == whole.feed(text)


@pytest.mark.parametrize(
    ("text", "in_code"),
    [
        ("", False),
        ("```python", False),  # the line may continue
        ("```python\n", True),
        ("```python\nx = 1\n", True),
        ("```python\nx = 1\n```", False),
        ("```text\nx\n", False),
        ("```python\nx = 1\n```\n```python\n", True),
    ],
)
def test_in_code(text: str, in_code: bool) -> None:
    scanner = FenceScanner("<run>")
    scanner.feed(text)
    assert scanner.in_code == in_code
