from __future__ import annotations

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from service.cli.output import abort, explain, sanitize, warn


class Shelf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    boards: int
    colour: str = "red"

    @field_validator("colour")
    @classmethod
    def _known(cls, value: str) -> str:
        if value != "red":
            raise ValueError("only red is allowed")
        return value


def errors_of(**fields: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Shelf.model_validate(fields)
    return explain(caught.value, Shelf)


def test_each_validation_error_names_its_field() -> None:
    assert errors_of(boards="many", colour="blue") == [
        "boards: Input should be a valid integer, unable to parse string as an integer, got 'many'",
        "colour: only red is allowed",
    ]
    assert errors_of() == ["boards: is missing"]


def test_suggests_the_field_for_a_misspelt_one() -> None:
    assert errors_of(boards=1, color="red") == ["color: unknown field. Did you mean colour?"]
    assert errors_of(boards=1, depth=3) == ["depth: unknown field"]


def test_messages_are_not_parsed_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        abort("pip install 'ih-grpo[train]'", "and [/this] too")
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == "error pip install 'ih-grpo[train]'\nerror and [/this] too\n"


def test_warning_does_not_exit(capsys: pytest.CaptureFixture[str]) -> None:
    warn("Unknown setting IHGRPO_[PROT]", "also this")
    assert capsys.readouterr().err == "warning Unknown setting IHGRPO_[PROT]\nwarning also this\n"


def test_escape_sequences_are_made_visible() -> None:
    assert sanitize("a\x1b]52;c;eA==\x07b\r\x9b2Jc\x7f") == "a␛]52;c;eA==␇b␍\ufffd2Jc␡"


@given(st.text())
def test_only_line_feeds_and_tabs_are_kept(text: str) -> None:
    shown = sanitize(text)
    assert len(shown) == len(text)
    assert not [
        char for char in shown if char not in "\n\t" and (ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0)
    ]
