"""Find the code that a request continues with its outputs of functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from service.api.chat.suspension import (
    Answers,
    LiveEpisode,
    Suspensions,
    check_answers,
    is_code_call,
    not_waiting,
)
from service.api.errors import ApiError
from service.api.responses.items import (
    CustomToolCall,
    CustomToolCallOutput,
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    McpApprovalResponse,
)
from service.api.responses.request import ResponseRequest
from service.common.json import Json
from service.store.responses import ResponseStore, StoredResponse


async def find_suspended(
    suspensions: Suspensions,
    store: ResponseStore,
    request: ResponseRequest,
    items: Sequence[InputItem],
    owner: str,
) -> tuple[LiveEpisode, Answers] | None:
    """Return the episode that ``request`` continues, and its answers; None if it continues none.

    Args:
        suspensions: of this process.
        store: the responses of all processes.
        request: names an earlier response, or contains the whole conversation.
        items: its input, with references resolved.
        owner: the key of the client.

    Raises:
        ApiError: 400 if the outputs are incomplete or don't fit, 409 if the code does not wait any more.
    """
    outputs = {
        item.call_id: item.output
        for item in items
        if isinstance(item, FunctionCallOutput | CustomToolCallOutput)
    }
    decisions = {
        item.approval_request_id: (item.approve, item.reason)
        for item in items
        if isinstance(item, McpApprovalResponse)
    }
    at_end = set(_ids_at_end(items))
    stored: StoredResponse | None = None
    if (previous := request.previous_response_id) is not None:
        live = suspensions.of_reply(previous, owner)
        stored = await store.get(previous, owner)
    else:
        live = suspensions.of_calls({*outputs, *decisions}, owner)
    if live is None:
        for_code = [call_id for call_id in outputs if is_code_call(call_id) and call_id in at_end]
        for_code += [request_id for request_id in decisions if request_id in at_end]
        waiting = None if stored is None else stored.body.get("suspended")
        if waiting is not None or (for_code and previous is None):
            elsewhere = isinstance(waiting, dict) and waiting.get("server") != suspensions.server
            raise not_waiting(for_code, elsewhere=elsewhere)
        return None
    answers = Answers(
        {call_id: output for call_id, output in outputs.items() if call_id in at_end}, approvals=decisions
    )
    if previous is not None and len(at_end) < len(items):
        raise ApiError(
            400,
            "Code of the previous response waits for outputs: 'input' may contain only these.",
            param="input",
            code="invalid_value",
        )
    called = _called(items, stored)
    check_answers(live, answers, called, api="responses", param="input", model=request.model)
    return live, answers


def _ids_at_end(items: Sequence[InputItem]) -> list[str]:
    """Return the calls and approvals whose answers end the input."""
    found: list[str] = []
    for item in reversed(items):
        if isinstance(item, McpApprovalResponse):
            found.append(item.approval_request_id)
        elif isinstance(item, FunctionCallOutput | CustomToolCallOutput):
            found.append(item.call_id)
        else:
            break
    return found


def _called(items: Sequence[InputItem], previous: StoredResponse | None) -> set[str]:
    """Return the ids of the calls in the conversation."""
    found = {item.call_id for item in items if isinstance(item, FunctionCall | CustomToolCall)}
    output = [] if previous is None else cast("list[Json]", previous.body["output"])
    return found | {str(item["call_id"]) for item in output if "call_id" in item}
