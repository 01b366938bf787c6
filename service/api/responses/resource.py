"""The response object, as OpenAI's clients know it."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from service.api.errors import ApiError
from service.api.responses.prepare import ResponseJob
from service.api.responses.request import OUTPUTS, FunctionChoice
from service.common.json import Json
from service.deferral.episode import Outcome
from service.engines.checkpoint import DEMO_WITHOUT_DEFERRAL


@dataclass(slots=True)
class Resource:
    """The state of one response."""

    job: ResponseJob
    status: str
    created_at: int = field(default_factory=lambda: int(time.time()))
    completed_at: int | None = None
    error: Json | None = None
    incomplete_reason: str | None = None
    usage: Json | None = None
    output: list[Json] = field(default_factory=list)
    final_answer: str | None = None

    def finish(self, outcome: Outcome) -> None:
        """The episode is over: completed, or cut by a limit."""
        if outcome.is_truncated:
            # A turn is a message: `max_turns` bounds those, `max_output_tokens` their tokens.
            self.incomplete_reason = "max_messages" if outcome is Outcome.TURN_LIMIT else "max_output_tokens"
            self.status = "incomplete"
        else:
            self.status, self.completed_at = "completed", int(time.time())

    def fail(self, error: ApiError) -> None:
        self.status, self.error = "failed", failure(error.message, error.status, error.code)

    def cancel(self) -> None:
        self.status = "cancelled"

    def body(self) -> Json:
        """All of it, outputs of code included."""
        request, chat = self.job.request, self.job.chat
        sampling = chat.sampling
        choice = request.tool_choice
        has_notice = chat.server.notice is not None and not request.runs_code
        return {
            "id": self.job.id,
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
                "effort": "medium" if chat.request.thinks else "none",
                "summary": None,
            },
            "safety_identifier": request.safety_identifier,
            "service_tier": "default",
            "store": request.stored,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_logprobs": sampling.top_logprobs,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "text": request.form.to_response(),
            "tool_choice": choice.model_dump() if isinstance(choice, FunctionChoice) else choice or "auto",
            "tools": [tool.to_response() for tool in request.offered_tools],
            "truncation": request.truncation or "disabled",
            "usage": self.usage,
            "user": request.user,
            "metadata": request.metadata or {},
            **({"notice": DEMO_WITHOUT_DEFERRAL} if has_notice else {}),
        }


def failure(message: str, status: int = 500, code: str | None = None) -> Json:
    """A response's ``error``, with the code that the same error has when it is an answer of its own."""
    return {"code": code or ("server_error" if status >= 500 else "invalid_prompt"), "message": message}


STOPPED: Final = failure("The server stopped before the response was complete.")


def cut(body: Json) -> Json:
    """The body of a response whose server ended in the middle."""
    return {
        **body,
        "status": "failed",
        "error": STOPPED,
    }


def cancelled(body: Json) -> Json:
    """The body of a response that was cancelled."""
    return {**body, "status": "cancelled"}


def shown(payload: Json, include: Collection[str]) -> Json:
    """A response or an event as the client sees it: without outputs of code that it did not ask for."""
    if OUTPUTS in include:
        return payload
    told = dict(payload)
    if isinstance(response := told.get("response"), dict):
        told["response"] = shown(response, include)
    if isinstance(item := told.get("item"), dict):
        told["item"] = _without_outputs(item)
    if isinstance(output := told.get("output"), list):
        told["output"] = [_without_outputs(item) for item in output]
    return told


def _without_outputs(item: Json) -> Json:
    return {**item, "outputs": None} if item.get("type") == "code_interpreter_call" else item
