"""Schemas of the Messages API's responses, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _AnthropicObject(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class AnthropicErrorDetails(_AnthropicObject):
    error_code: str
    """The code of the same error in OpenAI's form."""


class AnthropicErrorObject(_AnthropicObject):
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
    ]
    message: str
    param: str | None = None
    """Path of the invalid field, such as ``messages[0].content``."""
    details: AnthropicErrorDetails | None = None


class AnthropicErrorBody(_AnthropicObject):
    type: Literal["error"]
    error: AnthropicErrorObject
    request_id: str | None


class TextBlockObject(_AnthropicObject):
    type: Literal["text"]
    text: str


class ThinkingBlockObject(_AnthropicObject):
    type: Literal["thinking"]
    thinking: str
    signature: str
    """The thought, sealed for the client to keep."""


class CodeCallerObject(_AnthropicObject):
    """The code that makes a call."""

    type: Literal["code_execution_20250825", "code_execution_20260120"]
    tool_id: str
    """Id of the ``server_tool_use`` block with the code."""


class ToolUseBlockObject(_AnthropicObject):
    """A call for the client to make."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: CodeCallerObject | None = None
    """The code that waits for the result; omitted if the model calls the tool."""


class CodeInput(_AnthropicObject):
    code: str


class ServerToolUseBlockObject(_AnthropicObject):
    """Code that ran: all blocks that were pending, joined by newlines."""

    type: Literal["server_tool_use"]
    id: str
    name: Literal["code_execution"]
    input: CodeInput


class CodeExecutionResultObject(_AnthropicObject):
    type: Literal["code_execution_result"]
    stdout: str
    """Output of code that succeeded."""
    stderr: str
    """Output of code that failed."""
    return_code: int
    content: list[dict[str, Any]]


class CodeExecutionErrorObject(_AnthropicObject):
    type: Literal["code_execution_tool_result_error"]
    error_code: Literal["execution_time_exceeded", "unavailable"]


class CodeExecutionToolResultObject(_AnthropicObject):
    type: Literal["code_execution_tool_result"]
    tool_use_id: str
    content: CodeExecutionResultObject | CodeExecutionErrorObject


class OutputTokensDetails(_AnthropicObject):
    thinking_tokens: int
    observation_tokens: int
    """Outputs of code, which the model did not write; part of ``output_tokens``."""


class MessagesUsageObject(_AnthropicObject):
    input_tokens: int
    """Prompt tokens that were not cached."""
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    service_tier: Literal["standard"]


class AnthropicContainerObject(_AnthropicObject):
    id: str
    expires_at: str
    """Time at which it, or code in it that waits for results, ends without another request, in ISO 8601."""


class AnthropicMessageObject(_AnthropicObject):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[
        TextBlockObject
        | ThinkingBlockObject
        | ToolUseBlockObject
        | ServerToolUseBlockObject
        | CodeExecutionToolResultObject
    ]
    stop_reason: Literal[
        "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
    ]
    stop_sequence: str | None
    usage: MessagesUsageObject
    final_answer: str | None
    """The answer alone, as in chat completions."""
    container: AnthropicContainerObject | None = None
    """The container that code ran in; omitted if none ran or the container ends with the reply."""
    notice: str | None = None
    """Warning that the demo model can't answer without code; omitted otherwise."""


class TokenCountObject(_AnthropicObject):
    input_tokens: int


_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": AnthropicErrorBody,
        "description": "The request can't be served; the message states the reason.",
    },
    "5XX": {"model": AnthropicErrorBody, "description": "The server failed, or is shutting down."},
}
MESSAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "model": AnthropicMessageObject,
        "description": "The message; with `stream`, events from `message_start` to `message_stop`.",
        "content": {"text/event-stream": {}},
    },
    **_ERRORS,
}
TOKEN_COUNT: dict[int | str, dict[str, Any]] = {
    200: {"model": TokenCountObject, "description": "Number of tokens of the prompt."},
    **_ERRORS,
}
