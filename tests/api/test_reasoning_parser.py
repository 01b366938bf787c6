from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.reasoning_parser import ThinkSplitter


def split(pieces: list[str], prompt_end: str = "assistant\n") -> tuple[str, str]:
    splitter = ThinkSplitter(prompt_end)
    parts = [*(splitter.feed(piece) for piece in pieces), splitter.end()]
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
def test_both_sides(text: str, reasoning: str, content: str) -> None:
    assert split([text]) == (reasoning, content)
    assert split(list(text)) == (reasoning, content)


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<th", "ink>", "</", " ", "\n", "a", "b"]), max_size=12
)


@given(PIECES, st.sampled_from(["assistant\n", "<think>\n", "<think>\n\n</think>\n\n"]))
def test_any_cut_gives_the_same(pieces: list[str], prompt_end: str) -> None:
    whole = "".join(pieces)
    assert split(pieces, prompt_end) == split([whole], prompt_end) == split(list(whole), prompt_end)


def test_a_template_may_open_or_close_the_thought_itself() -> None:
    assert split(["hm</think>\n\nYes"], "<think>\n") == ("hm", "Yes")
    assert split(["\n<think>Yes"], "<think>\n\n</think>\n\n") == ("", "\n<think>Yes")


def test_what_is_given_stays_on_the_side_where_the_model_is() -> None:
    splitter = ThinkSplitter("")
    splitter.feed("<think>I run it ")
    seen = splitter.given("\n42 </think>\n")
    assert (seen.reasoning, seen.content) == (" \n42 </think>\n", "")
    assert splitter.thinking
    assert splitter.feed("so</think>42").content == "42"
    assert splitter.given(" <think>").content == " <think>"
    assert splitter.feed("b").content == "b"
