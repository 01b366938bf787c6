"""Decisions of clients about calls of tools by code, during a stream or after it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from service.api.chat.choice_builder import approval_json
from service.api.chat.suspension import Suspensions
from service.api.errors import ApiError
from service.api.validation import Strict
from service.common.json import Json
from service.tools.approval import DecidedApprovalError, UnknownApprovalError

Reason = Annotated[str | None, Field(max_length=500)]


class ApprovalDecision(Strict):
    """A decision about one call."""

    approval_request_id: str = Field(max_length=80)
    approve: bool
    reason: Reason = None
    """Shown to the code, and so perhaps to the model, if the call is denied."""


def decide(suspensions: Suspensions, reply_id: str, owner: str, decision: ApprovalDecision) -> Json:
    """Decide about a call and return the request.

    Raises:
        ApiError: 404 if the reply has ended or does not want to make this call, 409 if it was decided before.
    """
    live = suspensions.any_of_reply(reply_id, owner)
    request_id = decision.approval_request_id
    try:
        if live is None or live.chat.code_tools is None:
            raise UnknownApprovalError(request_id)
        request = live.decide(request_id, approve=decision.approve, reason=decision.reason)
    except UnknownApprovalError:
        message = (
            f"'{reply_id[:80]}' waits for no approval '{request_id}': the call was not requested, its "
            "code has ended, or it runs in another process of this service."
        )
        raise ApiError(404, message, param="approval_request_id", code="approval_not_found") from None
    except DecidedApprovalError:
        message = f"The approval '{request_id}' was decided before, or has expired."
        raise ApiError(409, message, param="approval_request_id", code="approval_decided") from None
    return approval_json(request, live.chat.code_tools)
