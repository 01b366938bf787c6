"""What came before: the conversation of an earlier response, and items that are named instead of sent."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from service.api.errors import ApiError
from service.api.responses.ids import is_response_id, response_of
from service.api.responses.items import CodeInterpreterCall, InputItem, ItemReference, SkippedItem
from service.api.responses.messages import Conversation
from service.api.wire import Json
from service.store.records import StoredResponse
from service.store.responses import ResponseStore

_items: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


async def recall(conversation: Conversation, store: ResponseStore, response_id: str, owner: str) -> None:
    """Put what was said up to ``response_id`` into ``conversation``; instructions are not carried over.

    Raises:
        ApiError: 404 if it or a response before it is gone, 409 if it is not over.
    """
    turns = await store.conversation(response_id, owner) if is_response_id(response_id) else []
    missing = turns[0].previous_id if turns else response_id
    if missing is not None:
        raise ApiError(
            404,
            f"Previous response with id '{missing}' not found: it was deleted, has expired, or never was.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if turns[-1].is_running:
        raise ApiError(
            409,
            f"Previous response '{response_id}' is not over: its status is '{turns[-1].status}'.",
            param="previous_response_id",
        )
    for turn in turns:
        conversation.add(_items.validate_python(turn.input))
        if any(item["type"] == "function_call" for item in _output(turn)):
            conversation.add(_items.validate_python(_output(turn)))
        elif turn.text:
            conversation.say("assistant", turn.text)


async def resolved(items: Sequence[InputItem], store: ResponseStore, owner: str) -> list[InputItem]:
    """``items`` with references replaced by what they name, and outputs that were not included put back.

    Raises:
        ApiError: 404 for a reference to nothing.
    """
    found: list[InputItem] = []
    look_up = _Stored(store, owner)
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


class _Stored:
    """Stored items by id; each response is read once."""

    def __init__(self, store: ResponseStore, owner: str) -> None:
        self._store = store
        self._owner = owner
        self._read: dict[str, StoredResponse | None] = {}

    async def item(self, item_id: str) -> Json | None:
        response_id = response_of(item_id)
        if response_id is None:
            return None
        if response_id not in self._read:
            self._read[response_id] = await self._store.get(response_id, self._owner)
        response = self._read[response_id]
        items = [] if response is None else [*_output(response), *response.input]
        return next((item for item in items if item["id"] == item_id), None)


def _output(response: StoredResponse) -> list[Json]:
    output: list[Json] = response.body["output"]  # type: ignore[assignment]
    return output
