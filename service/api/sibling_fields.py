"""Fields of the other APIs that each API rejects, because ignoring them would change the answer or its cost.

Clients that change from one API to another keep some of the old names. Fields without effect on the meaning
or cost of a reply, such as ``user`` or ``logprobs``, are not listed: they are ignored. A field that an API
has itself is never looked up here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from service.api.sampling import SamplingRequest
from service.api.validation import Rejected, SiblingField

Fields = Mapping[str, SiblingField]

_CHAT_ROUTE: Final = "/v1/chat/completions"
_NO_THOUGHT: Final = ({"type": "disabled"}, {"enabled": False}, {"effort": "none"}, {"effort": "minimal"})
_PLAIN_TEXT: Final = ({"type": "text"}, {"format": {"type": "text"}})


def _moved(instead: str, *names: str, neutral: tuple[object, ...] = ()) -> dict[str, SiblingField]:
    """Return fields that all have the same replacement."""
    return {name: SiblingField(instead, *neutral) for name in names}


def _thinking(switch: str, effort: str, limit: str) -> dict[str, SiblingField]:
    """Return the fields about thinking, with their replacements."""
    off = ({"enable_thinking": False}, {"thinking": False})
    return {
        "chat_template_kwargs": SiblingField(switch, *off),
        "enable_thinking": SiblingField(switch, False),
        **_moved(switch, "reasoning", "thinking", neutral=_NO_THOUGHT),
        "reasoning_effort": SiblingField(effort, "none", "minimal"),
        **_moved(limit, "thinking_budget", "thinking_token_budget", neutral=(-1,)),
    }


_SAMPLING: Final = {
    **{
        name: SiblingField("", *mark.neutral)
        for name, info in SamplingRequest.model_fields.items()
        for mark in info.metadata
        if isinstance(mark, Rejected)
    },
    **_moved(_CHAT_ROUTE, "logit_bias", "stop_token_ids"),
    **_moved(_CHAT_ROUTE, "n", "best_of", "repetition_penalty", "repeat_penalty", neutral=(1,)),
    **_moved(_CHAT_ROUTE, "ignore_eos", "continue_final_message", neutral=(False,)),
    "add_generation_prompt": SiblingField(_CHAT_ROUTE, True),
    "do_sample": SiblingField("'temperature'", True),
    "echo": SiblingField("/v1/completions", False),
    "min_tokens": SiblingField(_CHAT_ROUTE, 0),
    **_moved("", "chat_template", "documents", "suffix"),
    "modalities": SiblingField("", ["text"]),
}
"""Sampling fields of chat and text completions that the Responses and Messages APIs don't have."""
_FUNCTIONS: Final = {
    "functions": SiblingField("'tools'"),
    "function_call": SiblingField("'tool_choice'", "none", "auto"),
}
_STORED: Final = {
    **_moved("/v1/responses, or send all messages", "previous_response_id", "conversation"),
    "background": SiblingField("/v1/responses", False),
}
"""Fields of the Responses API that need stored responses."""

CHAT: Final[Fields] = {
    **_STORED,
    "max_output_tokens": SiblingField("'max_completion_tokens'"),
    "max_tool_calls": SiblingField("'deferral.max_turns'"),
    **_moved("'messages'", "input", "prompt"),
    **_moved("a message of role 'system'", "system", "instructions"),
    "stop_sequences": SiblingField("'stop'"),
    **_moved("'response_format'", "text", "output_format", neutral=_PLAIN_TEXT),
    "output_config": SiblingField("'response_format' and 'reasoning_effort'"),
    "container": SiblingField("'deferral.container'"),
    "mcp_servers": SiblingField("a tool of type 'mcp'"),
    "best_of": SiblingField("'n'", 1),
    **_moved("", "suffix", "thread", "compaction"),
}
RESPONSES: Final[Fields] = {
    **_SAMPLING,
    **_FUNCTIONS,
    **_thinking("'reasoning.effort'", "'reasoning.effort'", "'reasoning.max_tokens'"),
    **_moved("'max_output_tokens'", "max_tokens", "max_completion_tokens", "max_new_tokens"),
    "n_predict": SiblingField("'max_output_tokens'", -1),
    "messages": SiblingField("'input'"),
    "system": SiblingField("'instructions'"),
    **_moved(_CHAT_ROUTE, "stop", "stop_sequences"),
    **_moved("'text.format'", "response_format", "json_schema", "output_format", neutral=_PLAIN_TEXT),
    **_moved("'structured_outputs.grammar'", "guided_grammar", "grammar"),
    "guided_json": SiblingField("'text.format'"),
    "guided_regex": SiblingField("'structured_outputs.regex'"),
    "guided_choice": SiblingField("'structured_outputs.choice'"),
    "output_config": SiblingField("'text.format' and 'reasoning.effort'"),
    "container": SiblingField("'container' of the tool 'code_interpreter'"),
    "mcp_servers": SiblingField("a tool of type 'mcp'"),
    **_moved("", "thread", "compaction"),
}
MESSAGES: Final[Fields] = {
    **_SAMPLING,
    **_FUNCTIONS,
    **_STORED,
    **_thinking("'thinking'", "'thinking' and 'output_config.effort'", "'thinking.budget_tokens'"),
    **_moved("'max_tokens'", "max_completion_tokens", "max_output_tokens", "max_new_tokens"),
    "n_predict": SiblingField("'max_tokens'", -1),
    **_moved("'messages'", "input", "prompt"),
    "instructions": SiblingField("'system'"),
    "stop": SiblingField("'stop_sequences'"),
    **_moved(
        "'output_config.format'", "response_format", "text", "guided_json", "json_schema", neutral=_PLAIN_TEXT
    ),
    **_moved(_CHAT_ROUTE, "structured_outputs", "guided_regex", "guided_choice", "guided_grammar", "grammar"),
    "parallel_tool_calls": SiblingField("'tool_choice.disable_parallel_tool_use'", True),
    "strict_tool_calls": SiblingField(_CHAT_ROUTE, False),
    "max_tool_calls": SiblingField("'deferral.max_turns'"),
}
COMPLETIONS: Final[Fields] = {
    **_STORED,
    **_thinking(_CHAT_ROUTE, _CHAT_ROUTE, _CHAT_ROUTE),
    **_moved("'max_tokens'", "max_completion_tokens", "max_output_tokens"),
    **_moved(f"'prompt', or {_CHAT_ROUTE}", "messages", "input", "system", "instructions"),
    "stop_sequences": SiblingField("'stop'"),
    **_moved("'response_format'", "text", "output_config", "output_format", neutral=_PLAIN_TEXT),
    **_moved(_CHAT_ROUTE, "tools", "functions", "mcp_servers", "container"),
    **_moved(_CHAT_ROUTE, "tool_choice", "function_call", neutral=("none", "auto", {"type": "none"})),
    "deferral": SiblingField(_CHAT_ROUTE, {"enabled": False}),
    "continue_final_message": SiblingField(_CHAT_ROUTE, False),
    **_moved("", "chat_template", "documents", "thread", "compaction"),
}
