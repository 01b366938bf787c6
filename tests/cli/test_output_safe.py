from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.cli.output import sanitize


def test_escape_sequences_are_shown_not_obeyed() -> None:
    assert sanitize("a\x1b]52;c;eA==\x07b\r\x9b2Jc\x7f") == "a␛]52;c;eA==␇b␍\ufffd2Jc␡"


@given(st.text())
def test_no_control_character_is_left_but_line_feeds_and_tabs(text: str) -> None:
    shown = sanitize(text)
    assert len(shown) == len(text)
    assert not [
        char for char in shown if char not in "\n\t" and (ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0)
    ]
