"""Load history from the store: the conversation of an earlier response, and items referenced by id."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from service.api.chat.suspension import is_code_call
from service.api.errors import ApiError
from service.api.responses.items import (
    CodeInterpreterCall,
    Conversation,
    CustomToolCall,
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    ItemReference,
    McpApprovalRequest,
    McpApprovalResponse,
    McpCall,
    McpListTools,
    MessageItem,
    Program,
    ProgramOutput,
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
            code="previous_response_not_ended",
        )
    late: list[InputItem] = []
    for turn, following in zip(turns, [*turns[1:], None], strict=True):
        own = _items.validate_python(turn.input)
        if turn.body.get("continued_from") is None:
            conversation.add(own)
        else:  # outputs for code, which the model doesn't read, and perhaps for earlier calls of its own
            late += own
        if following is not None and following.body.get("continued_from") == turn.id:
            continue  # that response contains the whole reply
        for item in _output(turn):
            if item["type"] == "code_interpreter_call":
                conversation.note_container(str(item["container_id"]), str(item["id"]))
        if any(_is_call(item) for item in _items.validate_python(_output(turn))):
            output = _items.validate_python(_output(turn))
            conversation.add(output if turn.ids is None else [_reply_of(turn, turn.ids, output)])
        elif turn.ids is not None:
            conversation.add_reply(StoredReply(tuple(turn.ids), turn.text))
        elif turn.text:
            conversation.add_message("assistant", turn.text)
        conversation.add(late)
        late = []


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
                message = f"Item with id '{item.id}' not found."
                raise ApiError(404, message, param=f"input[{index}].id", code="item_not_found")
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
        reply = await _stored_reply([item for item in items[at:end] if not _for_code(item)], look_up)
        if reply is not None:
            result.append(reply)
        else:
            end = max(end, at + 1)
            result += items[at:end]
        at = end
    return result


def _is_call(item: InputItem) -> bool:
    """Return whether an item is a call of a function by the model."""
    return isinstance(item, FunctionCall | CustomToolCall) and not is_code_call(item.call_id)


def _for_code(item: InputItem) -> bool:
    """Return whether an item is an answer of the client to code."""
    if isinstance(item, McpApprovalResponse):
        return True
    return isinstance(item, FunctionCallOutput) and is_code_call(item.call_id)


def _is_output(item: InputItem) -> bool:
    return (
        _for_code(item)
        or isinstance(
            item,
            Reasoning
            | CodeInterpreterCall
            | Program
            | ProgramOutput
            | FunctionCall
            | CustomToolCall
            | McpListTools
            | McpCall
            | McpApprovalRequest,
        )
        or (isinstance(item, MessageItem) and item.role == "assistant")
    )


async def _stored_reply(items: Sequence[InputItem], look_up: _ItemLookup) -> StoredReply | None:
    kinds = CodeInterpreterCall | ProgramOutput | FunctionCall | CustomToolCall
    calls = [item for item in items if isinstance(item, kinds)]
    if not calls or calls[-1].id is None:
        return None
    last = response = await look_up.response(calls[-1].id)
    if last is None or last.ids is None:
        return None
    # A reply whose code waited for the client has several responses; the last one has its tokens.
    parts: list[list[InputItem]] = []
    while response is not None:
        parts.insert(0, _items.validate_python(_output(response)))
        response = await look_up.by_id(response.body.get("continued_from"))
    if _compared(items) != _compared([item for part in parts for item in part]):
        return None
    return _reply_of(last, last.ids, [item for part in parts for item in part])


def _reply_of(response: StoredResponse, ids: Sequence[int], output: Sequence[InputItem]) -> StoredReply:
    has_calls = any(map(_is_call, output))
    ran = [(item.container_id, item.id) for item in output if isinstance(item, CodeInterpreterCall)]
    return StoredReply(
        tuple(ids), response.text, tuple(output) if has_calls else (), ran[-1] if ran else None
    )


def _compared(items: Sequence[InputItem]) -> list[object]:
    """Return what must be equal. Calls of tools say nothing to the model, so clients may leave them out."""
    unseen = McpListTools | McpCall | McpApprovalRequest
    return [_comparable(item) for item in items if not isinstance(item, unseen)]


def _comparable(item: InputItem) -> object:
    """Return the values in which an item must equal the stored one."""
    match item:
        case MessageItem():
            return item.id, item.content
        case Reasoning():
            return item.id, [part.text for part in item.content]
        case CodeInterpreterCall():
            return item.id, item.code, None if item.outputs is None else [log.logs for log in item.outputs]
        case Program():
            return item.id, item.call_id, item.code
        case ProgramOutput():
            return item.id, item.call_id, item.result
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
        return await self.by_id(response_of(item_id))

    async def by_id(self, response_id: object) -> StoredResponse | None:
        """Return a response of the owner; None if there is none."""
        if not isinstance(response_id, str):
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
