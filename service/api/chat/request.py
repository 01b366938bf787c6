"""Validation of the body of ``POST /v1/chat/completions``, and its messages in the chat template's form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from service.api.files.choice import ContainerChoice, Figures, OnExpired
from service.api.sampling import SamplingRequest, enables_thinking
from service.api.tools.definitions import FunctionTool, NamedChoice, ResponseFormat, Tool, ToolChoice
from service.api.validation import FileParts, Ignored, OptionalContent, RequestModel, Strict, invalid, only
from service.episode.tool_parser import loads

_THOUGHT: Final = re.compile(r"\s*<think>\n*(.*?)\n*</think>\s*(.*)", re.DOTALL)


def _as_text(value: object) -> object:
    """Encode arguments that some SDKs send as an object."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class CalledFunction(RequestModel):
    """A call that the model made in an earlier reply."""

    name: str
    arguments: Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | dict[str, object])] = ""
    """A JSON object, as text. Invalid JSON is shown to the model unchanged, because the model wrote it."""
    parsed_arguments: object = None
    """The official SDK's parsed arguments, which it sends back. Ignored, like ``parsed``."""

    def as_object(self) -> object:
        """Return the arguments in the chat template's form: an object, or text if they are invalid."""
        if not self.arguments.strip():
            return {}
        try:
            arguments = loads(self.arguments)
        except ValueError:
            return self.arguments
        return arguments if isinstance(arguments, dict) else self.arguments


class CustomCall(RequestModel):
    """A call of a tool that takes free text."""

    name: str
    input: str = ""


class ToolCall(RequestModel):
    id: str
    type: Literal["function", "custom"] = "function"
    function: CalledFunction
    index: int | None = None
    """Index of a streamed call that is sent back. Ignored."""
    custom: CustomCall | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_custom(cls, data: object) -> object:
        """Convert a call of a custom tool to a function call with the argument ``input``."""
        custom = data.get("custom") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(custom, dict) or data.get("function") is not None:
            return data
        arguments = {"input": custom.get("input") or ""}
        return {**data, "function": {"name": custom.get("name"), "arguments": arguments}}


class Message(FileParts):
    """One turn. All fields of a reply are accepted when it is sent back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: OptionalContent = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """Another name of ``reasoning``. The chat template decides whether the model sees it again."""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    executed_tools: list[dict[str, object]] | None = None
    """Not part of the prompt: the content contains the code and its results."""
    unflushed_blocks: list[dict[str, object]] | None = None
    final_answer: str | None = None
    """Not part of the prompt: the content contains it."""
    parsed: object = None
    refusal: str | None = None
    """Used as the content of a message without any."""
    name: Annotated[object, Ignored()] = None
    container: str | None = None
    """Container of an earlier reply. Not part of the prompt."""
    audio: Annotated[object, Ignored()] = None
    annotations: Annotated[object, Ignored([])] = None
    function_call: Annotated[object, only()] = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.content is None and self.role not in ("assistant", "tool"):
            raise invalid("only assistant and tool messages may omit content", ".content")
        if self.role == "tool" and self.tool_call_id is None:
            raise invalid("a message of role 'tool' needs the id of its call", ".tool_call_id")
        if self.role != "assistant" and self.tool_calls:
            raise invalid("only assistant messages may have 'tool_calls'", ".tool_calls")
        return self

    def as_turn(self) -> dict[str, object]:
        """Return the turn in the chat template's form."""
        turn: dict[str, object] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or self.refusal or "",
        }
        if self.role == "assistant":
            if thought := self.reasoning or self.reasoning_content:
                turn["reasoning_content"] = thought
            elif parted := _THOUGHT.fullmatch(self.content or ""):
                # The template treats tags in content as text, so an inline thought is passed as a field.
                turn |= {"reasoning_content": parted[1], "content": parted[2]}
        if self.tool_calls:
            turn["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.as_object()},
                }
                for call in self.tool_calls
            ]
        return turn


def check_tool_answers(messages: list[Message]) -> list[Message]:
    """Check that each message of role ``tool`` answers an earlier call."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        called |= {call.id for call in message.tool_calls or ()}
        if message.role == "tool" and message.tool_call_id not in called:
            raise invalid(
                f"no earlier call has the id {message.tool_call_id!r} ('tool_call_id')",
                f"[{index}].tool_call_id",
            )
    return messages


Messages = Annotated[list[Message], Field(min_length=1), AfterValidator(check_tool_answers)]


Effort = Annotated[str, Field(max_length=32)]


class ChatTemplateKwargs(RequestModel):
    """Options for the chat template."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    """Name of ``enable_thinking`` in other templates."""


class ReasoningSwitch(RequestModel):
    """Thinking options of other servers: ``type`` in ``thinking``, the others in ``reasoning``."""

    type: Literal["enabled", "disabled", "adaptive", "auto"] | None = None
    enabled: bool | None = None
    effort: Effort | None = None

    @property
    def on(self) -> bool | None:
        """Whether thinking is on; None if unset."""
        if self.type is not None:
            return self.type == "enabled"
        return self.enabled if self.enabled is not None else enables_thinking(self.effort)


class DeferralOptions(Strict):
    """Options for code execution. Unset fields follow the checkpoint's policy."""

    enabled: bool | None = None
    """False for generation without code execution: the marker is a token like any other. Default: true,
    except in requests with ``tools`` or a JSON ``response_format``, whose replies can't contain code."""
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

    container: ContainerChoice | None = None
    """A container that keeps its variables and files after the reply: ``{"type": "auto"}`` for a new one, or
    the id that an earlier reply has in ``container``. Default: a container for this reply alone."""
    on_expired: OnExpired | None = None
    """Handling of a container id that has expired: ``error``, or ``fresh`` for a new container."""
    figures: Figures | None = None
    """Format of the figures that are stored with ``container``. Default: ``png``."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        names = ("container", "eager", "max_turns", "run_limit_s", "max_output_tokens", "unflushed")
        given = [name for name in names if getattr(self, name) is not None]
        if self.enabled is False and given:
            raise invalid(f"'{given[0]}' configures code execution, but 'enabled' is false")
        return self


class ChatRequest(SamplingRequest):
    """OpenAI's fields, the extras of vLLM and llama.cpp, and ``deferral``."""

    model: str
    messages: Messages
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Limit on the tokens that the model samples in the whole episode, without observations."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    strict_tool_calls: bool = False
    """Fail if the model writes an invalid call, instead of passing it on unchanged."""
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    chat_template_kwargs: ChatTemplateKwargs = ChatTemplateKwargs()
    continue_final_message: bool | None = None
    """Continue the last message, an assistant's, instead of beginning a new one."""
    reasoning_effort: Effort | None = None
    """``none`` and ``minimal`` turn thinking off, any other value on. The model has no degrees of it."""
    reasoning: ReasoningSwitch | None = None
    thinking: ReasoningSwitch | None = None
    enable_thinking: bool | None = None
    deferral: DeferralOptions = DeferralOptions()

    add_generation_prompt: bool | None = None
    """Must be true, unless the last message is continued."""
    add_special_tokens: Annotated[object, only(False)] = None
    chat_template: Annotated[object, only("")] = None
    documents: Annotated[object, only([])] = None
    echo: Annotated[object, only(False)] = None
    functions: Annotated[object, only([])] = None
    function_call: Annotated[object, only("none", "auto")] = None
    modalities: Annotated[object, only(["text"])] = None
    moderation: Annotated[object, only()] = None

    audio: Annotated[object, Ignored()] = None
    prediction: Annotated[object, Ignored()] = None
    verbosity: Annotated[object, Ignored()] = None
    web_search_options: Annotated[object, Ignored()] = None
    store: Annotated[object, Ignored(False)] = None
    service_tier: Annotated[object, Ignored("auto", "default")] = None
    prompt_cache_retention: Annotated[object, Ignored()] = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise invalid("it needs 'logprobs' to be true", ".top_logprobs")
        names = [tool.function.name for tool in self.functions_offered]
        if len(names) != len(set(names)):
            raise invalid("two functions have the same name", ".tools")
        if self.forces_call and not names:
            raise invalid("'tools' contains no function to call", ".tool_choice")
        if isinstance(self.tool_choice, NamedChoice) and self.tool_choice.function.name not in names:
            name = self.tool_choice.function.name
            raise invalid(f"it names {name!r}, which is not in 'tools'", ".tool_choice.function.name")
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid("it can't be combined with 'add_generation_prompt'", ".continue_final_message")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise invalid("the last message is not an assistant's", ".continue_final_message")
        if self.add_generation_prompt is False and not self.continue_final_message:
            raise invalid("it must be true unless the last message is continued", ".add_generation_prompt")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens or super().token_limit

    @property
    def functions_offered(self) -> list[FunctionTool]:
        """The client's functions, without tools of other kinds."""
        return [tool for tool in self.tools or () if isinstance(tool, FunctionTool)]

    @property
    def forces_call(self) -> bool:
        """Whether the reply must call a function."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedChoice)

    @property
    def explicit_thinking(self) -> bool | None:
        """The client's explicit choice about thinking; None if unset."""
        options = self.chat_template_kwargs
        for asked in (options.enable_thinking, options.thinking, self.enable_thinking):
            if asked is not None:
                return asked
        return None

    @property
    def thinks(self) -> bool:
        """Whether the model thinks first. An effort has no effect if the reply's form is fixed."""
        if self.explicit_thinking is not None:
            return self.explicit_thinking
        return self._effort is True and not (self.json_schema or self.forces_call)

    @property
    def _effort(self) -> bool | None:
        switches = [switch.on for switch in (self.thinking, self.reasoning) if switch is not None]
        return next((on for on in switches if on is not None), enables_thinking(self.reasoning_effort))

    def without_effect(self) -> Iterator[str]:
        yield from super().without_effect()
        if self._effort and not self.thinks:
            yield "reasoning_effort"

    @property
    def callable_tools(self) -> list[FunctionTool]:
        """The functions that this reply may call."""
        return [] if self.tool_choice == "none" else self.functions_offered

    @property
    def json_schema(self) -> str | None:
        """JSON schema of the whole reply, as text, if the client set one."""
        return None if self.response_format is None else self.response_format.schema_text

    @property
    def deferred(self) -> bool:
        """Whether code runs: by default in every request whose replies can contain code."""
        if self.deferral.enabled is not None:
            return self.deferral.enabled
        return not self.functions_offered and self.json_schema is None

    @property
    def conflict(self) -> tuple[Literal["deferral", "response_format", "tool_choice"], str] | None:
        """A field that can't be combined with another one, and the reason; None if there is none."""
        forced, thinking = self.forces_call, self.thinks
        options = self.deferral.model_dump(exclude_none=True)
        if options and self.deferral.enabled is not False and (self.functions_offered or self.json_schema):
            return "deferral", "code can't run in a request with 'tools' or a JSON 'response_format'"
        if self.json_schema and self.callable_tools:
            return "response_format", "JSON replies can't be combined with 'tools'"
        if self.json_schema and thinking:
            return "response_format", "a JSON reply can't be combined with 'enable_thinking'"
        if forced and thinking:
            return "tool_choice", "a forced call can't be combined with 'enable_thinking'"
        return None
