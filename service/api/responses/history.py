"""Load history from the store: the conversation of an earlier response, and items referenced by id."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from service.api.errors import ApiError
from service.api.responses.items import (
    CodeInterpreterCall,
    Conversation,
    CustomToolCall,
    FunctionCall,
    InputItem,
    ItemReference,
    McpCall,
    McpListTools,
    MessageItem,
    Reasoning,
    SkippedItem,
    StoredReply,
    is_response_id,
    response_of,
)
from service.common.json import Json
from service.store.responses import ResponseStore, StoredResponse

_items: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


async def recall(conversation: Conversation, store: ResponseStore, response_id: str, owner: str) -> None:
    """Add the conversation up to ``response_id`` to ``conversation``, without its instructions.

    Raises:
        ApiError: 404 if it or an earlier response is gone, 409 if it has not ended.
    """
    turns = await store.conversation(response_id, owner) if is_response_id(response_id) else []
    missing = turns[0].previous_id if turns else response_id
    if missing is not None:
        raise ApiError(
            404,
            f"Previous response with id '{missing}' not found: deleted, expired, or never created.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if turns[-1].is_running:
        raise ApiError(
            409,
            f"Previous response '{response_id}' has not ended: its status is '{turns[-1].status}'.",
            param="previous_response_id",
        )
    for turn in turns:
        conversation.add(_items.validate_python(turn.input))
        for item in _output(turn):
            if item["type"] == "code_interpreter_call":
                conversation.note_container(str(item["container_id"]), str(item["id"]))
        if any(item["type"] in ("function_call", "custom_tool_call") for item in _output(turn)):
            output = _items.validate_python(_output(turn))
            conversation.add(output if turn.ids is None else [_reply_of(turn, turn.ids, output)])
        elif turn.ids is not None:
            conversation.add_reply(StoredReply(tuple(turn.ids), turn.text))
        elif turn.text:
            conversation.add_message("assistant", turn.text)


async def resolved(items: Sequence[InputItem], store: ResponseStore, owner: str) -> list[InputItem]:
    """Return ``items`` with references resolved, and with outputs of code that the client didn't include.

    Raises:
        ApiError: 404 for an unknown reference.
    """
    found: list[InputItem] = []
    look_up = _ItemLookup(store, owner)
    for index, item in enumerate(items):
        if isinstance(item, SkippedItem):
            continue
        if isinstance(item, ItemReference):
            stored = await look_up.item(str(item.id))
            if stored is None:
                raise ApiError(404, f"Item with id '{item.id}' not found.", param=f"input[{index}].id")
            found += _items.validate_python([stored])
        elif isinstance(item, CodeInterpreterCall) and item.outputs is None and item.id is not None:
            stored = await look_up.item(item.id)
            found += [item] if stored is None else _items.validate_python([stored])
        else:
            found.append(item)
    return found


async def with_stored_replies(
    items: Sequence[InputItem], store: ResponseStore, owner: str
) -> list[InputItem | StoredReply]:
    """Replace each run of items that is the complete output of a stored response by that reply.

    Code ran in such a reply or it called functions, so it contains control tokens. The items must equal the
    stored ones. Edited items, and those of other owners, stay plain text.
    """
    result: list[InputItem | StoredReply] = []
    look_up = _ItemLookup(store, owner)
    at = 0
    while at < len(items):
        end = at
        while end < len(items) and _is_output(items[end]):
            end += 1
        reply = await _stored_reply(items[at:end], look_up)
        if reply is not None:
            result.append(reply)
        else:
            end = max(end, at + 1)
            result += items[at:end]
        at = end
    return result


def _is_output(item: InputItem) -> bool:
    return isinstance(
        item, Reasoning | CodeInterpreterCall | FunctionCall | CustomToolCall | McpListTools | McpCall
    ) or (isinstance(item, MessageItem) and item.role == "assistant")


async def _stored_reply(items: Sequence[InputItem], look_up: _ItemLookup) -> StoredReply | None:
    call = next(
        (item for item in items if isinstance(item, CodeInterpreterCall | FunctionCall | CustomToolCall)),
        None,
    )
    if call is None or call.id is None:
        return None
    response = await look_up.response(call.id)
    if response is None or response.ids is None:
        return None
    stored = _items.validate_python(_output(response))
    if _compared(items) != _compared(stored):
        return None
    return _reply_of(response, response.ids, stored)


def _reply_of(response: StoredResponse, ids: Sequence[int], output: Sequence[InputItem]) -> StoredReply:
    has_calls = any(isinstance(item, FunctionCall | CustomToolCall) for item in output)
    return StoredReply(tuple(ids), response.text, tuple(output) if has_calls else ())


def _compared(items: Sequence[InputItem]) -> list[object]:
    """Return what must be equal. Calls of tools say nothing to the model, so clients may leave them out."""
    return [_comparable(item) for item in items if not isinstance(item, McpListTools | McpCall)]


def _comparable(item: InputItem) -> object:
    """Return the values in which an item must equal the stored one."""
    match item:
        case MessageItem():
            return item.id, item.content
        case Reasoning():
            return item.id, [part.text for part in item.content]
        case CodeInterpreterCall():
            return item.id, item.code, None if item.outputs is None else [log.logs for log in item.outputs]
        case FunctionCall():
            return item.id, item.call_id, item.name, item.arguments
        case CustomToolCall():
            return item.id, item.call_id, item.name, item.input
    return item


class _ItemLookup:
    """Stored items by id. Each response is read once."""

    def __init__(self, store: ResponseStore, owner: str) -> None:
        self._store = store
        self._owner = owner
        self._read: dict[str, StoredResponse | None] = {}

    async def response(self, item_id: str) -> StoredResponse | None:
        """Return the response that an item belongs to."""
        response_id = response_of(item_id)
        if response_id is None:
            return None
        if response_id not in self._read:
            self._read[response_id] = await self._store.get(response_id, self._owner)
        return self._read[response_id]

    async def item(self, item_id: str) -> Json | None:
        """Return the stored item."""
        response = await self.response(item_id)
        items = [] if response is None else [*_output(response), *response.input]
        return next((item for item in items if item["id"] == item_id), None)


def _output(response: StoredResponse) -> list[Json]:
    output: list[Json] = response.body["output"]  # type: ignore[assignment]
    return output
