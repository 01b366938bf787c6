"""The tools of requests: the client's functions, the validation of calls against them, and code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal, Self

import jsonschema_rs
from pydantic import Discriminator, Field, PrivateAttr, Tag, ValidationError, model_validator

from service.api.tools.custom import CustomFields
from service.api.tools.mcp import McpServerTool
from service.api.validation import Ignored, RequestModel, Skipped, Strict, in_union, invalid, only
from service.common.json import Json, SchemaError, compile_schema, first_error
from service.tools.client import ClientFunction

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


Caller = Literal["direct", "programmatic"]
Callers = Annotated[list[Caller] | None, Field(min_length=1, max_length=2)]


class WithArguments(RequestModel):
    """A function whose arguments have a JSON schema."""

    _unenforceable: str | None = PrivateAttr(default=None)

    def check_enforceable(self, at: str) -> None:
        """Raise if calls can't be checked against the schema, which is at ``at`` in the request."""
        if self._unenforceable is not None:
            raise invalid(self._unenforceable, at)

    def _compiled(
        self, schema: dict[str, object], subject: str, at: str, *, for_code: bool
    ) -> jsonschema_rs.Validator | None:
        """Compile the schema. Return None if it is of another dialect, unless code calls the function."""
        try:
            return compile_schema(schema)
        except SchemaError as error:
            self._unenforceable = f"{subject} a usable JSON schema: {error}"
            if not error.is_foreign or for_code:
                raise invalid(self._unenforceable, at) from None
            return None


class Function(WithArguments):
    """A function that the client can run."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, object] | None = None
    """JSON schema of the arguments; None if there are none."""
    strict: bool | None = None
    """No effect. See ``strict_tool_calls``."""
    allowed_callers: Callers = None
    """``direct``: the model calls the function (default). ``programmatic``: code calls it, after ``from tools
    import NAME``."""
    output_schema: dict[str, object] | None = None
    """JSON schema of the outputs for code, which are JSON then. Default: they are text."""

    _validator: jsonschema_rs.Validator | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _compile(self) -> Self:
        schema, subject = self.schema_of_arguments, "'parameters' is not"
        self._validator = self._compiled(schema, subject, ".parameters", for_code=self.for_code is not None)
        try:
            compile_schema(self.output_schema or {})
        except ValueError as error:
            reason = f"'output_schema' is not a usable JSON schema: {error}"
            raise invalid(reason, ".output_schema") from None
        return self

    @property
    def is_direct(self) -> bool:
        """Whether the model may call it."""
        return self.allowed_callers is None or "direct" in self.allowed_callers

    @property
    def for_code(self) -> ClientFunction | None:
        """The function as code sees it; None if code may not call it."""
        if self.allowed_callers is None or "programmatic" not in self.allowed_callers:
            return None
        return ClientFunction(self.name, self.description or "", self.schema_of_arguments, self.output_schema)

    @property
    def schema_of_arguments(self) -> dict[str, object]:
        return self.parameters if self.parameters is not None else {"type": "object", "maxProperties": 0}

    def error_in(self, arguments: dict[str, object]) -> str | None:
        """Return the first error in ``arguments``; None if they are valid or can't be checked."""
        return None if self._validator is None else first_error(self._validator, arguments)


def check_enforceable(
    functions: Iterable[tuple[str, Function]], callable_names: Iterable[str], called: str | None
) -> None:
    """Raise if the arguments of a call must match a schema that can't be enforced.

    Args:
        functions: the request's functions and the paths of their schemas.
        callable_names: functions that the model may call.
        called: the function that it must call; None for any.
    """
    names = {name for name in callable_names if called in (None, name)}
    for at, function in functions:
        if function.name in names:
            function.check_enforceable(at)


def _reject_flat(data: Json) -> None:
    """Reject the form of the Responses API with a hint."""
    kind = "custom" if data.get("type") == "custom" else "function"
    if "name" in data and kind not in data and "function" not in data:
        raise invalid(f"chat completions have the field as '{kind}.name'", ".name")


class FunctionTool(RequestModel):
    type: Literal["function", "custom"] = "function"
    function: Function
    allowed_callers: Callers = None
    """Another place for the field of ``function``."""

    @model_validator(mode="before")
    @classmethod
    def _move_callers(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        _reject_flat(data)
        if not isinstance(function := data.get("function"), dict):
            return data
        if (callers := data.get("allowed_callers")) is None or "allowed_callers" in function:
            return data
        return {**data, "function": {**function, "allowed_callers": callers}}


class CustomTool(FunctionTool):
    """A tool that takes free text. The model sees a function."""

    custom: CustomFields

    @model_validator(mode="before")
    @classmethod
    def _as_function(cls, data: object) -> object:
        custom = data.get("custom") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(custom, dict):
            return data
        try:
            function = CustomFields.model_validate(custom).as_function()
        except ValidationError as error:
            detail = error.errors()[0]
            at = "".join(f".{part}" for part in detail["loc"]) + detail.get("ctx", {}).get("at", "")
            raise invalid(detail["msg"], f".custom{at}") from None
        return {**data, "function": function}


class AutoContainer(Strict):
    """A container that the server assigns: that of the conversation, or a new one."""

    type: Literal["auto"] = "auto"
    file_ids: Annotated[list[str] | None, Field(max_length=64)] = None
    """Uploaded files that code can read, in the folder ``/inputs``."""
    memory_limit: Annotated[str | None, Field(pattern=r"^[1-9][0-9]{0,5}[mg]$")] = None
    """Memory such as ``1g``; clipped to the range of this server."""
    network_policy: Annotated[object, only({"type": "disabled"})] = None

    @property
    def memory_mb(self) -> int | None:
        """``memory_limit`` in MiB."""
        if self.memory_limit is None:
            return None
        return int(self.memory_limit[:-1]) * (1024 if self.memory_limit.endswith("g") else 1)


ContainerId = Annotated[str, Field(max_length=80)]


def _container_tag(value: object) -> str:
    return "<id>" if isinstance(value, str) else "<auto>"


ContainerChoice = Annotated[
    Annotated[ContainerId, Tag("<id>")] | Annotated[AutoContainer, Tag("<auto>")],
    Discriminator(_container_tag),
]
OnExpired = Literal["error", "fresh"]
Figures = Literal["png", "svg"]


class CodeInterpreterTool(RequestModel):
    """The tool that lets the model run code."""

    type: Literal["code_interpreter"]
    container: ContainerChoice = AutoContainer()
    """``auto`` for the container of the conversation or a new one, or the id of a container."""
    allowed_callers: Annotated[object, Ignored(["direct"])] = None

    def to_response(self) -> Json:
        """Return the value in the response object."""
        if isinstance(self.container, str):
            return {"type": self.type, "container": self.container}
        return {"type": self.type, "container": self.container.model_dump(exclude_none=True)}


class CodeOptions(Strict):
    """Options for code execution. Unset fields follow the checkpoint's policy."""

    eager: bool | None = None
    """Start a block in the background as soon as it is written; its output still waits for the marker.
    Default: true."""
    max_turns: int | None = Field(default=None, ge=1)
    run_limit_s: float | None = Field(default=None, gt=0)
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a flush's output that the model reads."""
    unflushed: Literal["drop", "run"] | None = None
    """Handling of blocks that are pending when the model ends its turn: ``drop`` never runs them; ``run``
    runs them and the model continues."""
    live_output: bool | None = None
    """Stream the output of code while it runs. Default: false."""
    on_expired: OnExpired | None = None
    """Handling of a container id that has expired: ``error``, or ``fresh`` for a new container."""
    figures: Figures | None = None
    """Format of figures. Default: ``png``."""


class ProgrammaticTool(RequestModel):
    """OpenAI's tool that lets the model call functions from code. Here the code is Python."""

    type: Literal["programmatic_tool_calling"]

    def to_response(self) -> Json:
        """Return the value in the response object."""
        return {"type": self.type}


class SkippedTool(Skipped):
    """A tool of an unsupported type. It is not offered to the model."""


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")]
    | Annotated[CustomTool, Tag("<custom>")]
    | Annotated[CodeInterpreterTool, Tag("<code_interpreter>")]
    | Annotated[McpServerTool, Tag("<mcp>")]
    | Annotated[ProgrammaticTool, Tag("<programmatic_tool_calling>")]
    | Annotated[SkippedTool, Tag("<skipped>")],
    Discriminator(
        in_union(frozenset({"function", "custom", "code_interpreter", "mcp", "programmatic_tool_calling"})),
        custom_error_type="unsupported_parameter",
        custom_error_message=(
            "this server supports tools of type 'function', 'custom', 'code_interpreter' and 'mcp' only"
        ),
    ),
]


class NamedFunction(RequestModel):
    name: FunctionName


class NamedChoice(Strict):
    """The model must call this function or custom tool."""

    type: Literal["function", "custom"] = "function"
    function: NamedFunction

    @model_validator(mode="before")
    @classmethod
    def _read_custom(cls, data: object) -> object:
        if isinstance(data, dict):
            _reject_flat(data)
        if isinstance(data, dict) and data.get("type") == "custom" and "function" not in data:
            return {"function" if name == "custom" else name: value for name, value in data.items()}
        return data


ALLOWED_TYPES: Final = "this server accepts tools of type 'function', 'code_interpreter' and 'mcp' only"


class AllowedCode(Strict):
    """The code interpreter, in a list of allowed tools."""

    type: Literal["code_interpreter", "programmatic_tool_calling"]


def choice_tag(value: object) -> str:
    """Return the union tag of a ``tool_choice``, or of an allowed tool."""
    if isinstance(value, str):
        return "<mode>"
    kind = value.get("type", "function") if isinstance(value, dict) else getattr(value, "type", None)
    kind = {"custom": "function", "programmatic_tool_calling": "code_interpreter"}.get(str(kind), kind)
    return f"<{kind}>"


class AllowedServer(Strict):
    """All tools of an MCP server, in a list of allowed tools."""

    type: Literal["mcp"]
    server_label: str = Field(max_length=64)


AllowedTool = Annotated[
    Annotated[NamedChoice, Tag("<function>")]
    | Annotated[AllowedCode, Tag("<code_interpreter>")]
    | Annotated[AllowedServer, Tag("<mcp>")],
    Discriminator(
        choice_tag,
        custom_error_type="unsupported_parameter",
        custom_error_message=ALLOWED_TYPES,
    ),
]


class AllowedToolList(Strict):
    """Part of the request's tools, and whether one of its functions must be called."""

    mode: Literal["auto", "required"] = "auto"
    tools: list[AllowedTool] = Field(max_length=129)


class AllowedChoice(Strict):
    """The model may use only these tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolList


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedChoice, Tag("<function>")]
    | Annotated[AllowedChoice, Tag("<allowed_tools>")],
    Discriminator(
        choice_tag,
        custom_error_type="unsupported_parameter",
        custom_error_message=(
            "this server accepts 'none', 'auto', 'required', a function by name, or 'allowed_tools'"
        ),
    ),
]


class Functions:
    """The functions that a reply may call."""

    def __init__(self, functions: Sequence[Function]) -> None:
        self._by_name = {function.name: function for function in functions}

    def check(self, name: str, arguments: dict[str, object] | None) -> str | None:
        """Return the error in a call, or in its name alone if ``arguments`` is None; None if it is valid."""
        if (function := self._by_name.get(name)) is None:
            return f"the request's 'tools' contain no function {name!r}"
        return None if arguments is None else function.error_in(arguments)


def _check_schema(schema: dict[str, object] | None) -> None:
    try:
        compile_schema(schema or {})
    except ValueError as error:
        raise invalid(f"'schema' is not a usable JSON schema: {error}", ".schema") from None


class TextFormat(RequestModel):
    type: Literal["text"]

    @property
    def schema_text(self) -> str | None:
        """JSON schema of the whole reply; None for free text."""
        return None


class JsonObjectFormat(RequestModel):
    type: Literal["json_object"]
    schema_: dict[str, object] | None = Field(default=None, alias="schema")
    """JSON schema of the object, an extension of llama.cpp and others."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        _check_schema(self.schema_)
        return self

    @property
    def schema_text(self) -> str | None:
        return json.dumps(self.schema_ or {"type": "object"})


class JsonSchema(RequestModel):
    name: str = Field(default="response", max_length=64)
    description: str | None = None
    schema_: dict[str, object] = Field(alias="schema")
    strict: bool | None = None
    """No effect: the schema is always enforced."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        _check_schema(self.schema_)
        return self


class JsonSchemaFormat(RequestModel):
    type: Literal["json_schema"]
    json_schema: JsonSchema

    @property
    def schema_text(self) -> str | None:
        return json.dumps(self.json_schema.schema_)


UNION_TAG: Final = "<{}>"
"""Form of union tags, which distinguishes them from field names in error locations."""
FORMAT_TYPES: Final = "this server supports the types 'text', 'json_object' and 'json_schema' only"


def by_type(value: object) -> str | None:
    """Return the tag of a union's member, made of its ``type``."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return UNION_TAG.format(kind)


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    Discriminator(by_type, custom_error_type="invalid_value", custom_error_message=FORMAT_TYPES),
]
