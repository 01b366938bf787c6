"""The tools of a request: our code interpreter, or the client's own functions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from service.api.functions.declared import Function, FunctionName, SkippedTool
from service.api.validation import Ignored, RequestModel, Strict, in_union, only
from service.api.wire import Json

MEANT_TAG = "<{}>"
"""Tags of unions look so: they are no part of a field's name."""


class AutoContainer(Strict):
    """A container of our choice, made when code first runs and gone with the response."""

    type: Literal["auto"] = "auto"
    file_ids: Annotated[object, only([])] = None
    memory_limit: Annotated[object, only()] = None
    network_policy: Annotated[object, only({"type": "disabled"})] = None


class CodeInterpreterTool(RequestModel):
    """The model may run code. Without this tool none runs."""

    type: Literal["code_interpreter"]
    container: AutoContainer = AutoContainer()
    allowed_callers: Annotated[object, Ignored(["direct"])] = None

    def as_told(self) -> Json:
        """As the response object tells it."""
        return {"type": self.type, "container": {"type": "auto"}}


class FunctionTool(Function):
    """A function that the client runs."""

    type: Literal["function"] = "function"
    defer_loading: Annotated[object, Ignored(False)] = None
    allowed_callers: Annotated[object, Ignored(["direct"])] = None
    output_schema: Annotated[object, Ignored()] = None

    def as_told(self) -> Json:
        """As the response object tells it."""
        return self.model_dump(include={"type", "name", "description", "parameters", "strict"})


def by_type(value: object) -> str | None:
    """The tag of a union's member: its ``type``, which no field's name can be taken for."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return MEANT_TAG.format(kind)


Tool = Annotated[
    Annotated[CodeInterpreterTool, Tag("<code_interpreter>")]
    | Annotated[FunctionTool, Tag("<function>")]
    | Annotated[SkippedTool, Tag("<skipped>")],
    Discriminator(
        in_union(frozenset({"code_interpreter", "function"})),
        custom_error_type="unsupported_parameter",
        custom_error_message="this server has tools of type 'code_interpreter' and 'function' only",
    ),
]


class FunctionChoice(Strict):
    """The model must call this function."""

    type: Literal["function"] = "function"
    name: FunctionName


def _choice_tag(value: object) -> str | None:
    return "<mode>" if isinstance(value, str) else by_type(value)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[FunctionChoice, Tag("<function>")],
    Discriminator(
        _choice_tag,
        custom_error_type="unsupported_parameter",
        custom_error_message="this server takes 'none', 'auto', 'required' or a function by name",
    ),
]
Tools = Annotated[list[Tool], Field(max_length=128)]
