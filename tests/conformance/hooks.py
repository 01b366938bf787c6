"""Facts that Schemathesis can't know: the name of the model, and values that can't be combined.

Every field keeps the value that was drawn for it. It is dropped if the value can't be combined with the
others or served on this machine. So most requests are accepted, and their responses are
compared with OpenAI's schema.
"""

from __future__ import annotations

from typing import Any

import schemathesis

from service.api.chat.request import ChatRequest


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    return {**_fitting(body), "model": "scripted"} if isinstance(body, dict) else body


@schemathesis.hook
def map_path_parameters(context: schemathesis.HookContext, path_parameters: Any) -> Any:
    return {**path_parameters, "model": "scripted"} if path_parameters else path_parameters


def _fitting(body: dict[str, Any]) -> dict[str, Any]:
    known = ChatRequest.model_fields
    fits = {name: value for name, value in body.items() if name in known and _in_range(name, value)}
    if not fits.get("logprobs"):
        fits.pop("top_logprobs", None)
    if not fits.get("stream"):
        fits.pop("stream_options", None)
    form = fits.get("response_format") or {}
    if form.get("type") == "json_schema":
        form["json_schema"].setdefault("schema", {"type": "object"})
    if form.get("type") in ("json_object", "json_schema") or not fits.get("tools"):
        fits.pop("tools", None)
        fits.pop("tool_choice", None)
    if isinstance(fits.get("tool_choice"), dict):
        fits["tool_choice"] = "auto"
    for tool in fits.get("tools") or ():
        tool["function"]["parameters"] = {"type": "object"}
    # Of the turns those of a tool would need calls before them.
    turns = [
        {"role": turn["role"], "content": turn.get("content") or "?"}
        for turn in body.get("messages", [])
        if turn.get("role") in ("system", "developer", "user", "assistant")
    ]
    return {**fits, "messages": [*turns, {"role": "user", "content": "6 * 7?"}]}


def _in_range(name: str, value: Any) -> bool:
    match name:
        case "max_tokens" | "max_completion_tokens":
            return value is None or value >= 1
        case "n":
            return value is None or value <= 16
        case "top_p":
            return value is None or value > 0
        case "logit_bias":
            return value is None or all(token.isdecimal() for token in value)
        case "stop":
            return value is None or (bool(value) and all(value))
        case "messages":
            return False
    return True
