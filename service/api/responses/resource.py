"""The response object of OpenAI's API."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from service.api.errors import ApiError
from service.api.responses.prepare import PreparedResponse
from service.api.responses.request import EXECUTION, OUTPUTS
from service.api.sampling import enables_thinking
from service.common.json import Json
from service.deferral.episode import Outcome
from service.engines.checkpoint import DEMO_WITHOUT_DEFERRAL


@dataclass(slots=True)
class Resource:
    """State of one response."""

    prepared: PreparedResponse
    status: str
    created_at: int = field(default_factory=lambda: int(time.time()))
    completed_at: int | None = None
    error: Json | None = None
    incomplete_reason: str | None = None
    usage: Json | None = None
    output: list[Json] = field(default_factory=list)
    final_answer: str | None = None
    suspended: Json | None = None
    """Set if code waits for the client; see `Suspensions.as_json`."""

    def finish(self, outcome: Outcome) -> None:
        """Set the status at the end of the episode: completed, or incomplete if a limit cut it."""
        if outcome.is_truncated:
            # A turn is a message: `max_turns` bounds those, `max_output_tokens` their tokens.
            self.incomplete_reason = "max_messages" if outcome is Outcome.TURN_LIMIT else "max_output_tokens"
            self.status = "incomplete"
        else:
            self.status, self.completed_at = "completed", int(time.time())

    def suspend(self, suspended: Json) -> None:
        """Set the status at the end of a response whose code waits for the client."""
        self.status, self.completed_at, self.suspended = "completed", int(time.time()), suspended

    def fail(self, error: ApiError) -> None:
        self.status, self.error = "failed", failure(error.message, error.status, error.code)

    def cancel(self) -> None:
        self.status = "cancelled"

    def _effort(self) -> str:
        """Return the reasoning effort that the client asked for, if it turns thinking on or off as asked."""
        options, thinks = self.prepared.request.reasoning, self.prepared.chat.request.thinks
        asked = None if options is None else options.effort
        if asked is not None and enables_thinking(asked) is thinks:
            return asked
        return "medium" if thinks else "none"

    def body(self) -> Json:
        """Return the response object with all outputs of code."""
        request, chat = self.prepared.request, self.prepared.chat
        sampling = chat.sampling
        choice = request.tool_choice
        container_notice = None if chat.container is None else chat.container.notice
        has_notice = chat.server.notice is not None and not request.runs_code
        return {
            "id": self.prepared.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": self.completed_at,
            "status": self.status,
            "background": bool(request.background),
            "error": self.error,
            "incomplete_details": None
            if self.incomplete_reason is None
            else {"reason": self.incomplete_reason},
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "model": request.model,
            "output": list(self.output),
            "final_answer": self.final_answer,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": {
                "effort": self._effort(),
                "summary": None,
            },
            "safety_identifier": request.safety_identifier,
            "service_tier": "default",
            "store": request.stored,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if request.top_p is None else request.top_p,
            "top_logprobs": sampling.top_logprobs,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "text": request.form.to_response(),
            "tool_choice": (choice or "auto") if isinstance(choice, str | None) else choice.model_dump(),
            "tools": [tool.to_response() for tool in request.offered_tools],
            "truncation": request.truncation or "disabled",
            "usage": self.usage,
            "user": request.user,
            "metadata": request.metadata or {},
            **({} if self.suspended is None else {"suspended": self.suspended}),
            **(
                {"continued_from": self.prepared.continued_from}
                if self.prepared.continued_from is not None
                else {}
            ),
            **({"notice": DEMO_WITHOUT_DEFERRAL} if has_notice else {}),
            **({"notice": container_notice} if container_notice is not None else {}),
        }


def failure(message: str, status: int = 500, code: str | None = None) -> Json:
    """Return a response's ``error``, with the code that the same HTTP error has."""
    return {"code": code or ("server_error" if status >= 500 else "invalid_prompt"), "message": message}


STOPPED: Final = failure("The server stopped before the response was complete.")


def cut(body: Json) -> Json:
    """Return ``body`` as failed, for a response whose server stopped while it ran."""
    return {
        **body,
        "status": "failed",
        "error": STOPPED,
    }


def cancelled(body: Json) -> Json:
    """Return ``body`` as cancelled."""
    return {**body, "status": "cancelled"}


def shown(payload: Json, include: Collection[str]) -> Json:
    """Return a response or an event for the client.

    Outputs of code, and details of its execution, are left out unless ``include`` names them.
    """
    if OUTPUTS in include and EXECUTION in include:
        return payload
    result = dict(payload)
    if isinstance(response := result.get("response"), dict):
        result["response"] = shown(response, include)
    if isinstance(item := result.get("item"), dict):
        result["item"] = _shown_item(item, include)
    if isinstance(output := result.get("output"), list):
        result["output"] = [_shown_item(item, include) for item in output]
    return result


def _shown_item(item: Json, include: Collection[str]) -> Json:
    if item.get("type") != "code_interpreter_call":
        return item
    found = dict(item)
    if OUTPUTS not in include:
        found["outputs"] = None
    if EXECUTION not in include:
        found.pop("execution", None)
    return found
