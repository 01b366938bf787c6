"""Messages and content blocks of a conversation in a request."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from service.api.validation import (
    Ignored,
    OptionalContent,
    RequestModel,
    Skipped,
    invalid,
    is_strict,
    unsupported,
)
from service.deferral.observation import TIMEOUT_TEXT
from service.tools.base import CODE_CALL_PREFIX

NoEffectOption = Annotated[object, Ignored()]
CODE_EXECUTION: Final = "code_execution"
DIRECT: Final = "direct"
"""The caller of a tool that the model calls."""


class TextBlock(RequestModel):
    """Text. Blocks of one message are joined without a separator."""

    type: Literal["text"] = "text"
    text: str
    cache_control: NoEffectOption = None
    citations: Annotated[object, Ignored([])] = None


class ThinkingBlock(RequestModel):
    """A thought of an earlier reply."""

    type: Literal["thinking"]
    thinking: str = ""
    signature: str | None = None
    """The thought, sealed by this server. It replaces a ``thinking`` that was omitted from the reply."""


class RedactedThinkingBlock(RequestModel):
    """A sealed thought of an earlier reply."""

    type: Literal["redacted_thinking"]
    data: str


class BlockCaller(RequestModel):
    """The caller of a tool: the model, or code in a reply."""

    type: Annotated[str, Field(max_length=64)] = DIRECT
    tool_id: str | None = None
    """Id of the ``server_tool_use`` block with the code."""


class ToolUseBlock(RequestModel):
    """A call of one of the client's tools in an earlier reply."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, object] | str = Field(default_factory=dict)
    """Text is read as JSON. If it is not, the model reads it unchanged."""
    cache_control: NoEffectOption = None
    caller: BlockCaller | None = None

    @property
    def is_from_code(self) -> bool:
        """Whether code made the call. The result went to the code, so the model has seen neither."""
        return self.id.startswith(CODE_CALL_PREFIX) or (
            self.caller is not None and self.caller.type != DIRECT
        )


class ToolResultBlock(RequestModel):
    """The result of a call of one of the client's tools."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: OptionalContent = None
    is_error: bool | None = None
    """The tool failed: the model reads ``Error: `` before the content unless it begins so already. Code that
    called the tool gets an exception."""
    cache_control: NoEffectOption = None

    @property
    def text(self) -> str:
        """The result in the form that the model reads."""
        text = self.content or ""
        return f"Error: {text}" if self.is_error and not text.lower().startswith("error") else text


class ServerToolUseBlock(RequestModel):
    """Code that ran in an earlier reply. The text before it already contains the code."""

    type: Literal["server_tool_use"]
    id: str
    name: str
    input: dict[str, object] = Field(default_factory=dict)
    cache_control: NoEffectOption = None
    caller: Annotated[object, Ignored({"type": "direct"})] = None


class CodeExecutionResult(RequestModel):
    """Output of code, or the reason why there is none."""

    type: Literal["code_execution_result", "code_execution_tool_result_error"]
    stdout: str = ""
    stderr: str = ""
    return_code: int = 0
    error_code: str | None = None
    content: Annotated[object, Ignored([])] = None

    @property
    def output(self) -> str:
        """The output in the form that the model was shown."""
        if self.type == "code_execution_result":
            return self.stdout + self.stderr
        return TIMEOUT_TEXT if self.error_code == "execution_time_exceeded" else _NO_SANDBOX


class ContainerUploadBlock(RequestModel):
    """An uploaded file that code can read."""

    type: Literal["container_upload"]
    file_id: str = Field(max_length=80)
    cache_control: NoEffectOption = None


_NO_SANDBOX: Final = "SandboxError: the sandbox failed; all variables are lost"


class CodeExecutionToolResultBlock(RequestModel):
    """The output of code that ran in an earlier reply."""

    type: Literal["code_execution_tool_result"]
    tool_use_id: str
    content: CodeExecutionResult
    cache_control: NoEffectOption = None


class SkippedBlock(Skipped):
    """A block of a type that this server never creates, from a conversation with another server."""

    type: str = "unknown"


_BLOCKS: Final = (
    *("text", "thinking", "redacted_thinking", "tool_use", "tool_result"),
    *("server_tool_use", "code_execution_tool_result", "container_upload"),
)
_REJECTED: Final = frozenset({"image", "document", "search_result", "audio", "video", "file"})
"""Types that are never skipped, because that would change the question."""


def _block_tag(value: object) -> str | None:
    kind = value.get("type", "text") if isinstance(value, dict) else getattr(value, "type", None)
    if kind in _BLOCKS and not isinstance(value, SkippedBlock):
        return f"<{kind}>"
    is_skippable = isinstance(kind, str) and kind not in _REJECTED and not is_strict()
    return "<skipped>" if is_skippable else None


InputBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinkingBlock, Tag("<redacted_thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[ServerToolUseBlock, Tag("<server_tool_use>")]
    | Annotated[CodeExecutionToolResultBlock, Tag("<code_execution_tool_result>")]
    | Annotated[ContainerUploadBlock, Tag("<container_upload>")]
    | Annotated[SkippedBlock, Tag("<skipped>")],
    Discriminator(
        _block_tag,
        custom_error_type="unsupported_parameter",
        custom_error_message="blocks of this type are not supported: this model reads text only",
    ),
]


def _as_blocks(value: object) -> object:
    blocks = [value] if isinstance(value, str) else value
    if not isinstance(blocks, list):
        return blocks
    return [{"type": "text", "text": block} if isinstance(block, str) else block for block in blocks]


class InputMessage(RequestModel):
    """One turn. Consecutive turns of one role are combined."""

    clear_at: Literal["next_user_message", "never"] | None = None
    """``next_user_message``: the model reads a system message only until a later user message."""
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[InputBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[InputBlock])
    ]

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        if self.role == "assistant":
            return self
        allowed = ("text", "tool_result", "container_upload") if self.role == "user" else ("text",)
        for index, block in enumerate(self.content):
            if block.type not in allowed:
                kinds = ", ".join(f"'{kind}'" for kind in allowed)
                raise unsupported(
                    f"a {self.role} message may have blocks of type {kinds} only", f".content[{index}]"
                )
        return self


def check_results(messages: list[InputMessage]) -> list[InputMessage]:
    """Check that each tool result answers an earlier call, and that the last message contains no call."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        for place, block in enumerate(message.content):
            if isinstance(block, ToolUseBlock):
                called.add(block.id)
            elif isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
                raise invalid(
                    f"no earlier tool_use block has the id {block.tool_use_id!r}",
                    f"[{index}].content[{place}].tool_use_id",
                )
    if messages[-1].role == "assistant" and any(isinstance(b, ToolUseBlock) for b in messages[-1].content):
        raise invalid("its tool_use blocks need results in a next message", f"[{len(messages) - 1}].content")
    return messages
