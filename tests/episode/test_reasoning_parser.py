from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.episode.reasoning_parser import ReasoningParser


def split(pieces: list[str], prompt_end: str = "assistant\n") -> tuple[str, str]:
    parser = ReasoningParser(prompt_end)
    parts = [*(parser.feed(piece) for piece in pieces), parser.end()]
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nhm\nso\n</think>\n\nYes.", "hm\nso", "Yes."),
        ("<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("\n<think>a</think>", "a", ""),
        ("<think>a </thin> b", "a </thin> b", ""),  # cut off while thinking
        ("Yes <think>no</think>", "", "Yes <think>no</think>"),  # only at the beginning
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        ("<thin", "", "<thin"),
        (" \n Yes", "", " \n Yes"),
    ],
)
def test_splits_reasoning_and_content(text: str, reasoning: str, content: str) -> None:
    assert split([text]) == (reasoning, content)
    assert split(list(text)) == (reasoning, content)


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<th", "ink>", "</", " ", "\n", "a", "b"]), max_size=12
)


@given(PIECES, st.sampled_from(["assistant\n", "<think>\n", "<think>\n\n</think>\n\n"]))
def test_result_does_not_depend_on_the_cuts(pieces: list[str], prompt_end: str) -> None:
    whole = "".join(pieces)
    assert split(pieces, prompt_end) == split([whole], prompt_end) == split(list(whole), prompt_end)


def test_thought_opened_or_closed_by_the_template() -> None:
    assert split(["hm</think>\n\nYes"], "<think>\n") == ("hm", "Yes")
    assert split(["\n<think>Yes"], "<think>\n\n</think>\n\n") == ("", "\n<think>Yes")


def test_inserted_text_joins_the_current_side() -> None:
    parser = ReasoningParser("")
    parser.feed("<think>I run it ")
    seen = parser.insert("\n42 </think>\n")
    assert (seen.reasoning, seen.content) == (" \n42 </think>\n", "")
    assert parser.is_thinking
    assert parser.feed("so</think>42").content == "42"
    assert parser.insert(" <think>").content == " <think>"
    assert parser.feed("b").content == "b"
