"""The client's own functions: as a request names them, and the check of a call against them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import jsonschema_rs
from pydantic import Discriminator, Field, PrivateAttr, Tag, model_validator

from service.api.functions.json_schemas import compile_schema, complaint
from service.api.validation import RequestModel, Skipped, Strict, in_union, invalid

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(RequestModel):
    """A function that the client can run."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, object] | None = None
    """JSON schema of the arguments; None: it takes none."""
    strict: bool | None = None
    """Of no effect: every call is checked against ``parameters`` before it is handed out."""

    _validator: jsonschema_rs.Validator = PrivateAttr()

    @model_validator(mode="after")
    def _compile(self) -> Self:
        try:
            self._validator = compile_schema(self.schema_of_arguments)
        except ValueError as error:
            raise invalid(f"'parameters' is not a usable JSON schema: {error}", ".parameters") from None
        return self

    @property
    def schema_of_arguments(self) -> dict[str, object]:
        return self.parameters if self.parameters is not None else {"type": "object", "maxProperties": 0}

    def complaint(self, arguments: dict[str, object]) -> str | None:
        """What is wrong with ``arguments``; None if they fit."""
        return complaint(self._validator, arguments)


class FunctionTool(RequestModel):
    type: Literal["function"] = "function"
    function: Function


class SkippedTool(Skipped):
    """A tool of a kind that this server lacks. The model is not offered it."""


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")] | Annotated[SkippedTool, Tag("<skipped>")],
    Discriminator(
        in_union(frozenset({"function"})),
        custom_error_type="unsupported_parameter",
        custom_error_message="this server has tools of type 'function' only",
    ),
]


class NamedFunction(RequestModel):
    name: FunctionName


class NamedChoice(Strict):
    """The model must call this function."""

    type: Literal["function"] = "function"
    function: NamedFunction


def _choice_tag(value: object) -> str | None:
    if isinstance(value, dict):
        return "<function>" if value.get("type", "function") == "function" else None
    return "<function>" if isinstance(value, NamedChoice) else "<mode>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")] | Annotated[NamedChoice, Tag("<function>")],
    Discriminator(
        _choice_tag,
        custom_error_type="unsupported_parameter",
        custom_error_message="this server takes 'none', 'auto', 'required' or a function by name",
    ),
]


class Functions:
    """The functions that a reply may call."""

    def __init__(self, functions: Sequence[Function]) -> None:
        self._by_name = {function.name: function for function in functions}

    def check(self, name: str, arguments: dict[str, object] | None) -> str | None:
        """What is wrong with a call, or with a name where ``arguments`` is None; None if nothing is."""
        if (function := self._by_name.get(name)) is None:
            return f"there is no function {name!r} among the request's 'tools'"
        return None if arguments is None else function.complaint(arguments)
