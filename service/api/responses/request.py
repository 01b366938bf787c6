"""The body of ``POST /v1/responses``, checked. A field that can't be honoured is refused by name."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.api.responses.items import Input
from service.api.responses.text import TextOptions
from service.api.responses.tools import CodeInterpreterTool, FunctionTool, ToolChoice, Tools
from service.api.strict import Strict, invalid, only

OUTPUTS = "code_interpreter_call.outputs"
LOGPROBS = "message.output_text.logprobs"
Include = Literal[
    "code_interpreter_call.outputs",
    "message.output_text.logprobs",
    # Of items that this server never makes: asking for them asks for nothing.
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Unsupported = Annotated[object, only()]


class StreamOptions(Strict):
    include_obfuscation: Annotated[object, only(False)] = None


class ReasoningOptions(Strict):
    """Whether the model thinks first. It knows no degrees of it."""

    effort: Literal["none", "medium"] | None = None
    summary: Annotated[object, only("auto")] = None
    """``auto`` gives what there is: the thoughts themselves, as the item's content."""
    generate_summary: Annotated[object, only("auto")] = None


class CodeOptions(Strict):
    """How the code interpreter runs code. Unset: the checkpoint's own policy."""

    eager: bool | None = None
    """Start a block in the background as soon as it is written; its output still waits for the marker."""
    max_turns: int | None = Field(default=None, ge=1)
    run_limit_s: float | None = Field(default=None, gt=0)
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a flush's output that the model reads."""
    unflushed: Literal["drop", "run"] | None = None
    """What happens to blocks that are pending when the model ends its turn: they never run, or the server
    runs them and the model continues."""


class ResponseRequest(Strict):
    """OpenAI's fields, three sampling extras of vLLM, and ``deferral``."""

    model: str
    input: Input
    instructions: str | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[Include] | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Tokens that the model may sample in the whole response; observations are not counted."""
    max_tool_calls: int | None = Field(default=None, ge=1)
    """Most times that code runs; where the model asks for more, the response is incomplete."""
    metadata: dict[MetadataKey, MetadataValue] | None = Field(default=None, max_length=16)
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    text: TextOptions | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Annotated[object, only("auto", "default")] = None

    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    deferral: CodeOptions | None = None

    access_programs: Unsupported = None
    background_options: Unsupported = None
    context_management: Annotated[object, only([])] = None
    conversation: Unsupported = None
    image: Unsupported = None
    moderation: Unsupported = None
    prompt: Unsupported = None
    prompt_cache_options: Unsupported = None
    prompt_cache_retention: Unsupported = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.background and self.store is False:
            raise invalid("'background' needs 'store': who leaves must find the response again")
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' needs 'stream' to be true")
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise invalid(f"'top_logprobs' needs 'include' to hold '{LOGPROBS}'")
        return self

    @property
    def stored(self) -> bool:
        return self.store is not False

    @property
    def form(self) -> TextOptions:
        """The form of the reply."""
        return self.text or TextOptions()

    @property
    def runs_code(self) -> bool:
        """Whether the model may run code: only if the client brought the tool for it."""
        asked = any(isinstance(tool, CodeInterpreterTool) for tool in self.tools or ())
        return asked and self.tool_choice != "none"

    @property
    def functions(self) -> list[FunctionTool]:
        """The client's functions."""
        return [tool for tool in self.tools or () if isinstance(tool, FunctionTool)]
