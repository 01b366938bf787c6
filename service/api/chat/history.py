"""Token ids of earlier replies in a conversation that a client sends back."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.api.chat.request import ChatRequest
from service.deferral.scanner import FENCE
from service.engines.base import Tokenizer
from service.episode.reasoning_parser import without_thought
from service.store.replies import ReplyStore

_log = structlog.get_logger(__name__)


async def find_replies(store: ReplyStore, owner: str, request: ChatRequest) -> dict[int, tuple[int, ...]]:
    """Return the token ids of the messages that are replies of this server, by index.

    If the store fails, no message counts as a reply of this server.
    """
    if not request.deferred:
        return {}
    contents = {
        index: message.content
        for index, message in enumerate(request.messages)
        if message.role == "assistant" and message.content and FENCE in message.content
    }
    try:
        found = await store.find(owner, set(contents.values()))
    except (SQLAlchemyError, OSError):  # a driver raises OSError if it can't connect
        _log.exception("replies_not_found")
        return {}
    return {index: found[content] for index, content in contents.items() if content in found}


async def store_reply(
    store: ReplyStore, owner: str, content: str, ids: Sequence[int], tokenizer: Tokenizer
) -> None:
    """Store the token ids of a reply in which code ran, so that later turns can send it back.

    If the store fails, later turns encode the reply as plain text.
    """
    try:
        await store.put(owner, content, without_thought(ids, tokenizer))
    except (SQLAlchemyError, OSError):
        _log.exception("reply_not_kept")
