"""What the request models share: nothing unknown passes, and what can't be honoured is refused by name."""

from __future__ import annotations

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """Unknown fields are refused; numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def unsupported(message: str) -> PydanticCustomError:
    """The error for a field that OpenAI has and this server can't honour."""
    return PydanticCustomError("unsupported_parameter", "{message}", {"message": message})


def invalid(message: str) -> PydanticCustomError:
    """The error for a value that makes no sense."""
    return PydanticCustomError("invalid_value", "{message}", {"message": message})


def only(*neutral: object) -> AfterValidator:
    """Refuse a known OpenAI field, save the values that ask for nothing (None among them)."""

    def check(value: object) -> None:
        if value is not None and value not in neutral:
            raise unsupported("this server does not support it")

    return AfterValidator(check)
