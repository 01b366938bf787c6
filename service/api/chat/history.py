"""Token ids of earlier replies in a conversation that a client sends back."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.api.chat.request import ChatRequest
from service.api.tools.history import reply_key
from service.deferral.scanner import FENCE
from service.engines.base import Tokenizer
from service.episode.reasoning_parser import without_thought
from service.store.replies import ReplyStore

_log = structlog.get_logger(__name__)


async def find_replies(store: ReplyStore, owner: str, request: ChatRequest) -> dict[int, tuple[int, ...]]:
    """Return the token ids of the messages that are replies of this server, by index.

    If the store fails, no message counts as a reply of this server.
    """
    if not (request.runs_code or request.offers_code):
        return {}
    keys = {
        index: reply_key(message.content or "", message.earlier_calls())
        for index, message in enumerate(request.messages)
        if message.role == "assistant" and (message.tool_calls or FENCE in (message.content or ""))
    }
    try:
        found = await store.find(owner, set(keys.values()))
    except (SQLAlchemyError, OSError):  # a driver raises OSError if it can't connect
        _log.exception("replies_not_found")
        return {}
    return {index: found[key] for index, key in keys.items() if key in found}


async def store_reply(
    store: ReplyStore, owner: str, key: str, ids: Sequence[int], tokenizer: Tokenizer
) -> None:
    """Store the token ids of a reply, so that later turns can send it back.

    Code ran in the reply, or it calls functions in a request with code. If the store fails, later turns
    encode the reply as plain text.

    Args:
        store: stores the ids.
        owner: owner of the reply.
        key: see `reply_key`; the content of a reply without calls.
        ids: token ids of the whole reply.
        tokenizer: the model's.
    """
    try:
        await store.put(owner, key, without_thought(ids, tokenizer))
    except (SQLAlchemyError, OSError):
        _log.exception("reply_not_kept")
