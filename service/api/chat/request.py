"""Validation of the body of ``POST /v1/chat/completions``, and its messages in the chat template's form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from service.api import sibling_fields
from service.api.sampling import EFFORT_TOKENS, SamplingRequest, TokenBudget, enables_thinking
from service.api.structured_outputs import Structure
from service.api.tools.definitions import (
    AllowedChoice,
    AllowedCode,
    AllowedServer,
    AllowedToolList,
    CodeInterpreterTool,
    CodeOptions,
    ContainerChoice,
    CustomTool,
    Figures,
    FunctionTool,
    NamedChoice,
    ProgrammaticTool,
    Tool,
    ToolChoice,
    check_enforceable,
)
from service.api.tools.history import EarlierCall
from service.api.tools.mcp import McpServerTool, check_labels
from service.api.validation import (
    FileParts,
    Ignored,
    Label,
    OptionalContent,
    RequestModel,
    invalid,
    only,
)
from service.episode.tool_parser import loads
from service.tools.client import ClientFunction

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

    def earlier_calls(self) -> list[EarlierCall]:
        """Return the calls of this reply."""
        return [
            EarlierCall(call.id, call.function.name, call.function.arguments)
            for call in self.tool_calls or ()
        ]

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
    thinking_budget: TokenBudget | None = None


class ReasoningSwitch(RequestModel):
    """Thinking options of other servers: ``type`` in ``thinking``, the others in ``reasoning``."""

    type: Literal["enabled", "disabled", "adaptive", "auto"] | None = None
    enabled: bool | None = None
    effort: Effort | None = None
    budget_tokens: TokenBudget | None = None
    max_tokens: TokenBudget | None = None
    """Name of ``budget_tokens`` in ``reasoning``."""

    @property
    def budget(self) -> int | None:
        """Most tokens of the thought, if the client set them."""
        return self.max_tokens if self.budget_tokens is None else self.budget_tokens

    @property
    def on(self) -> bool | None:
        """Whether thinking is on; None if unset."""
        if self.type is not None:
            return self.type == "enabled"
        if self.enabled is not None or self.effort is not None:
            return self.enabled if self.enabled is not None else enables_thinking(self.effort)
        return None if self.budget is None else self.budget != 0


class DeferralOptions(CodeOptions):
    """Options for code execution. Unset fields follow the checkpoint's policy."""

    enabled: bool | None = None
    """False for generation without code execution: the marker is a token like any other. Default: true,
    except in requests with a constraint on the reply such as ``response_format``, or with functions but no
    ``code_interpreter`` in ``tools``. With true and a constraint, the constraint applies to a final answer
    after the code has run."""
    container: ContainerChoice | None = None
    """A container that keeps its variables and files after the reply: ``{"type": "auto"}`` for a new one, or
    the id that an earlier reply has in ``container``. Default: a container for this reply alone."""
    figures: Figures | None = None
    """Format of the figures that are stored with ``container``. Default: ``png``."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        names = (
            "container",
            "eager",
            "live_output",
            "max_turns",
            "run_limit_s",
            "max_output_tokens",
            "unflushed",
        )
        given = [name for name in names if getattr(self, name) is not None]
        if self.enabled is False and given:
            raise invalid(f"'{given[0]}' configures code execution, but 'enabled' is false")
        return self


_NO_FUNCTION: Final = {
    False: "'tools' contains no function to call",
    True: "the model decides when code runs, so a run can't be required, and there is no function to call",
}
"""Errors for a required call, by whether the model may run code."""


class ChatRequest(SamplingRequest):
    """OpenAI's fields, the extras of vLLM and llama.cpp, and ``deferral``."""

    sibling_fields: ClassVar = sibling_fields.CHAT

    model: str
    messages: Messages
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Limit on the tokens that the model samples in the whole episode, without observations."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    strict_tool_calls: bool = False
    """Fail if the model writes an invalid call, instead of passing it on unchanged."""
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    metadata: dict[str, Label] | None = Field(default=None, max_length=16)
    chat_template_kwargs: ChatTemplateKwargs = ChatTemplateKwargs()
    continue_final_message: bool | None = None
    """Continue the last message, an assistant's, instead of beginning a new one."""
    reasoning_effort: Effort | None = None
    """``none`` and ``minimal`` turn thinking off, any other value on. ``low`` and ``medium`` limit it to 1024
    and 8192 tokens."""
    reasoning: ReasoningSwitch | None = None
    thinking: ReasoningSwitch | None = None
    thinking_budget: TokenBudget | None = None
    """Most tokens of the thought: 0 for none, -1 for no limit. At the limit the server closes the thought."""
    thinking_token_budget: TokenBudget | None = None
    """vLLM's name of ``thinking_budget``."""
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
        if self.tools:
            check_labels(self.tools)
        if self.deferral.enabled is False and self.offers_code:
            raise invalid("it is false, but 'tools' contains a code_interpreter", ".deferral.enabled")
        names = [tool.function.name for tool in self.functions_offered]
        if len(names) != len(set(names)):
            raise invalid("two functions have the same name", ".tools")
        self._check_allowed(names)
        self._check_schemas()
        if self.forces_call and not self.callable_tools:
            raise invalid(_NO_FUNCTION[self.offers_code], ".tool_choice")
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

    def _check_schemas(self) -> None:
        """Raise if the arguments of a call must match a schema that can't be enforced."""
        if not (self.strict_tool_calls or self.forces_call):
            return
        choice = self.tool_choice
        check_enforceable(
            (
                (f".tools[{index}].function.parameters", tool.function)
                for index, tool in enumerate(self.tools or ())
                if isinstance(tool, FunctionTool)
            ),
            (tool.function.name for tool in self.callable_tools),
            choice.function.name if isinstance(choice, NamedChoice) else None,
        )

    def _check_allowed(self, names: list[str]) -> None:
        labels = {tool.server_label for tool in self.tools or () if isinstance(tool, McpServerTool)}
        for index, tool in enumerate(self._allowed.tools if self._allowed else ()):
            at = f".tool_choice.allowed_tools.tools[{index}]"
            if isinstance(tool, NamedChoice) and tool.function.name not in names:
                name = tool.function.name
                raise invalid(f"it names {name!r}, which is not in 'tools'", f"{at}.function.name")
            if isinstance(tool, AllowedCode) and not self.offers_code:
                raise invalid("'tools' contains no code_interpreter", at)
            if isinstance(tool, AllowedServer) and tool.server_label not in labels:
                label = tool.server_label
                raise invalid(f"it names {label!r}, which is not in 'tools'", f"{at}.server_label")

    @property
    def _allowed(self) -> AllowedToolList | None:
        """The tools to which ``tool_choice`` limits the reply; None for all tools."""
        choice = self.tool_choice
        return choice.allowed_tools if isinstance(choice, AllowedChoice) else None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens or super().token_limit

    @property
    def functions_offered(self) -> list[FunctionTool]:
        """The client's functions, without tools of other kinds."""
        return [tool for tool in self.tools or () if isinstance(tool, FunctionTool)]

    @property
    def offers_code(self) -> bool:
        """Whether the request has the tool for running code."""
        return any(isinstance(tool, CodeInterpreterTool | ProgrammaticTool) for tool in self.tools or ())

    @property
    def mcp_tools(self) -> list[McpServerTool]:
        """MCP servers whose tools code in the reply may call."""
        if self.tool_choice == "none":
            return []
        found = [tool for tool in self.tools or () if isinstance(tool, McpServerTool)]
        if self._allowed is None:
            return found
        labels = {tool.server_label for tool in self._allowed.tools if isinstance(tool, AllowedServer)}
        return [tool for tool in found if tool.server_label in labels]

    @property
    def forces_call(self) -> bool:
        """Whether the reply must call a function."""
        mode = self._allowed.mode if self._allowed else self.tool_choice
        return mode == "required" or isinstance(mode, NamedChoice)

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
        """Whether the request turns thinking on. An effort has no effect if a call is forced."""
        if self.explicit_thinking is not None:
            return self.explicit_thinking
        return self._effort is True and not self.forces_call

    @property
    def _effort(self) -> bool | None:
        if self.explicit_budget == 0:
            return False
        switches = [switch.on for switch in (self.thinking, self.reasoning) if switch is not None]
        return next((on for on in switches if on is not None), enables_thinking(self.reasoning_effort))

    @property
    def explicit_budget(self) -> int | None:
        """Most tokens of the thought that the client set as a number, -1 for no limit; None if unset."""
        switches = [switch.budget for switch in (self.thinking, self.reasoning) if switch is not None]
        others = (self.thinking_budget, self.thinking_token_budget, self.chat_template_kwargs.thinking_budget)
        return next((tokens for tokens in (*others, *switches) if tokens is not None), None)

    @property
    def thinking_tokens(self) -> int | None:
        """Most tokens of the thought, set as a number or by an effort; None for no limit."""
        if self.explicit_budget is not None:
            return None if self.explicit_budget < 0 else self.explicit_budget
        efforts = (self.reasoning.effort if self.reasoning else None, self.reasoning_effort)
        return next((EFFORT_TOKENS.get(effort) for effort in efforts if effort is not None), None)

    def without_effect(self) -> Iterator[str]:
        yield from super().without_effect()
        if self._effort and not self.thinks:
            yield self.effort_param
        if self.structure is not None and self.forces_call:
            yield self.structure.param

    @property
    def callable_tools(self) -> list[FunctionTool]:
        """The functions that the model may call in this reply."""
        return [tool for tool in self._allowed_functions if tool.function.is_direct]

    @property
    def code_functions(self) -> list[ClientFunction]:
        """The functions that code in this reply may call."""
        found = (tool.function.for_code for tool in self._allowed_functions)
        return [function for function in found if function is not None]

    @property
    def _allowed_functions(self) -> list[FunctionTool]:
        """The functions that ``tool_choice`` allows."""
        if self.tool_choice == "none":
            return []
        if self._allowed is None:
            return self.functions_offered
        names = {tool.function.name for tool in self._allowed.tools if isinstance(tool, NamedChoice)}
        return [tool for tool in self.functions_offered if tool.function.name in names]

    @property
    def custom_names(self) -> frozenset[str]:
        """Names of the tools that take free text."""
        return frozenset(tool.function.name for tool in self.callable_tools if isinstance(tool, CustomTool))

    @property
    def constraint(self) -> Structure | None:
        """The constraint on the reply's text. A reply that must be a function call has no text."""
        return None if self.forces_call else self.structure

    @property
    def effort_param(self) -> str:
        """Name of the field that sets the reasoning effort."""
        names = ("thinking", "reasoning", "reasoning_effort")
        return next((name for name in names if getattr(self, name) is not None), names[-1])

    @property
    def runs_code(self) -> bool:
        """Whether the model may run code: by default in every request whose replies can contain code."""
        if self.deferral.enabled is not None:
            return self.deferral.enabled
        if self.mcp_tools or self.code_functions:
            return True
        if self._allows_code:
            return True
        if self.structure is not None:
            return bool(self.deferral.model_dump(exclude_none=True))
        return not self.functions_offered and not self.offers_code

    @property
    def _allows_code(self) -> bool:
        """Whether the request has the tool for running code, and ``tool_choice`` allows it."""
        if not self.offers_code or self.tool_choice == "none":
            return False
        return self._allowed is None or any(isinstance(tool, AllowedCode) for tool in self._allowed.tools)

    @property
    def deferred(self) -> bool:
        """Whether code in this reply runs. A reply that must be a function call contains none."""
        return self.runs_code and not self.forces_call

    @property
    def conflict(self) -> tuple[str, str] | None:
        """A field that can't be combined with another one, and the reason; None if there is none."""
        forced, thinking = self.forces_call, self.thinks
        if self.mcp_tools and not self.runs_code:
            return "deferral", "tools of MCP servers are called from code, which must be able to run"
        if self.code_functions and not self.runs_code:
            return "deferral", "'tools' contains a function that code may call, so code must be able to run"
        if any(tool.unapproved is not True for tool in self.mcp_tools):
            if self.choices > 1:
                return "n", "calls that need approval need a single choice"
            if not self.stream:
                return "require_approval", "calls are approved during the stream, which needs 'stream': true"
        if self.code_functions and self.choices > 1:
            return "n", "code that calls functions of the client needs a single choice"
        options = self.deferral.model_dump(exclude_none=True)
        if options and self.deferral.enabled is None and not self.runs_code:
            return "deferral", "it configures code execution, which needs a code_interpreter in 'tools' here"
        if forced and thinking:
            return "tool_choice", "a forced call can't be combined with 'enable_thinking'"
        return None
