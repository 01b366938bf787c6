"""Find the code that a message continues with its results of tools."""

from __future__ import annotations

from itertools import takewhile

from service.api.chat.prepare import PreparedChat
from service.api.chat.suspension import (
    Answers,
    LiveEpisode,
    Suspensions,
    check_answers,
    not_waiting,
)
from service.api.errors import ApiError
from service.api.messages.request import InputBlock, MessagesRequest, ToolResultBlock, ToolUseBlock
from service.common.json import Json


class LiveMessage(LiveEpisode):
    """The episode of a reply that may consist of several messages.

    Args:
        chat: the chat request that it runs.
        owner: the key of the client.
        request: the request for the first message. Its fields apply to the whole reply.
    """

    def __init__(self, chat: PreparedChat, owner: str, request: MessagesRequest) -> None:
        super().__init__(chat, owner, "messages", waits_for_approvals=True)
        self.request = request
        self.blocks: list[Json] = []
        """Blocks of the earlier messages of the reply."""


def find_suspended(
    suspensions: Suspensions, request: MessagesRequest, owner: str
) -> tuple[LiveMessage, Answers] | None:
    """Return the episode that ``request`` continues, and its answers; None if it continues none.

    Raises:
        ApiError: 400 if a result is missing, or if the request contains something else than the results; 409
            if the code doesn't wait any more.
    """
    last = list(takewhile(lambda message: message.role == "user", reversed(request.messages)))
    blocks = [block for message in reversed(last) for block in message.content]
    results = [block for block in blocks if isinstance(block, ToolResultBlock)]
    if not results:
        return None
    called = _calls(request)
    live = suspensions.of_calls([result.tool_use_id for result in results], owner)
    if live is None:
        for_code = [result.tool_use_id for result in results if called[result.tool_use_id].is_from_code]
        if for_code:
            raise not_waiting(for_code)
        return None
    answers = Answers(
        {result.tool_use_id: result.content or "" for result in results},
        failed=frozenset(result.tool_use_id for result in results if result.is_error),
    )
    check_answers(live, answers, called, api="messages", param="messages", model=request.model)
    assert isinstance(live, LiveMessage)  # noqa: S101  (the API is the same)
    _check_rest(live, request, blocks)
    return live, answers


def _check_rest(live: LiveMessage, request: MessagesRequest, blocks: list[InputBlock]) -> None:
    """Raise ApiError 400 if a request that continues code contains something that the code can't use."""
    others = sorted({block.type for block in blocks if not isinstance(block, ToolResultBlock)})
    if others:
        message = (
            f"Code waits for the results: the message may contain only these, but it has blocks of type "
            f"{', '.join(others)}."
        )
        raise ApiError(400, message, param="messages", code="invalid_value")
    container = live.chat.container
    if request.container_id is not None and (container is None or container.id != request.container_id):
        message = "'container': the code that waits for the results runs in another container."
        raise ApiError(400, message, param="container", code="invalid_value")


def _calls(request: MessagesRequest) -> dict[str, ToolUseBlock]:
    return {
        block.id: block
        for message in request.messages
        for block in message.content
        if isinstance(block, ToolUseBlock)
    }
