"""Token ids of earlier replies in a conversation that a client sends back."""

from __future__ import annotations

import json
from collections.abc import Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.api.chat.request import ChatRequest, Message
from service.api.chat.suspension import (
    Answers,
    LiveEpisode,
    Suspensions,
    check_answers,
    is_code_call,
    not_waiting,
)
from service.api.tools.history import EarlierCall
from service.deferral.scanner import FENCE
from service.engines.base import Tokenizer
from service.episode.reasoning_parser import without_thought
from service.episode.tool_parser import loads
from service.store.replies import ReplyStore

_log = structlog.get_logger(__name__)


def outputs_at_end(request: ChatRequest) -> Answers:
    """Return the outputs in the messages of role ``tool`` that end the conversation."""
    found: dict[str, str] = {}
    for message in reversed(request.messages):
        if message.role != "tool":
            break
        found[message.tool_call_id or ""] = message.content or ""
    return Answers(found)


def find_suspended(suspensions: Suspensions, request: ChatRequest, owner: str) -> LiveEpisode | None:
    """Return the episode that ``request`` continues; None if it continues none.

    Raises:
        ApiError: 400 if an output is missing or another model is named, 409 if the code doesn't wait any
            more.
    """
    found = outputs_at_end(request)
    live = suspensions.of_calls(found.outputs, owner)
    if live is None:
        if for_code := [call_id for call_id in found.outputs if is_code_call(call_id)]:
            raise not_waiting(for_code)
        return None
    known = {call.id for message in request.messages for call in message.tool_calls or ()}
    check_answers(live, found, known, api="chat", param="messages", model=request.model)
    return live


def with_whole_replies(request: ChatRequest) -> ChatRequest:
    """Return ``request`` with each reply as one message, if its code has called functions of the client.

    Such a reply is sent in parts. The model wrote the parts one after the other, and has not seen the calls.
    """
    if not any(is_code_call(call.id) for message in request.messages for call in message.tool_calls or ()):
        return request
    whole: list[Message] = []
    is_open = False
    for message in request.messages:
        if message.role == "tool" and is_code_call(message.tool_call_id or ""):
            continue
        calls = [call for call in message.tool_calls or () if not is_code_call(call.id)]
        waits = len(calls) < len(message.tool_calls or ())
        part = message.model_copy(update={"tool_calls": calls or None, "content": message.content or ""})
        if message.role == "assistant" and is_open:
            content = f"{whole[-1].content}{part.content}"
            whole[-1] = part.model_copy(
                update={"content": content, "reasoning_content": whole[-1].reasoning_content}
            )
        else:
            whole.append(part if message.role == "assistant" else message)
        is_open = message.role == "assistant" and waits
    return request.model_copy(update={"messages": whole})


def reply_key(content: str, calls: Sequence[EarlierCall]) -> str:
    """Return the text by which a reply's token ids are looked up.

    It contains the ids of the calls, which only this server and the client know. Clients may encode the
    arguments in another way, so only their value counts.
    """
    if not calls:
        return content
    listed = [[call.id, call.name, _value(call.arguments)] for call in calls]
    return f"{content.strip()}\0{json.dumps(listed, sort_keys=True)}"


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


def _value(arguments: str) -> object:
    try:
        return loads(arguments or "{}")
    except ValueError:
        return arguments
