from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from service.cli.output import explain


class Shelf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    boards: int
    colour: str = "red"

    @field_validator("colour")
    @classmethod
    def _known(cls, value: str) -> str:
        if value != "red":
            raise ValueError("there is red alone")
        return value


def told(**fields: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Shelf.model_validate(fields)
    return explain(caught.value, Shelf)


def test_each_mistake_is_a_line_that_names_the_field() -> None:
    assert told(boards="many", colour="blue") == [
        "boards: Input should be a valid integer, unable to parse string as an integer, got 'many'",
        "colour: there is red alone",
    ]
    assert told() == ["boards: is missing"]


def test_a_misspelt_field_is_told_with_the_one_that_was_meant() -> None:
    assert told(boards=1, color="red") == ["color: there is no such field; did you mean colour?"]
    assert told(boards=1, depth=3) == ["depth: there is no such field"]
