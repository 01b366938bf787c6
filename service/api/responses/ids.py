"""Ids. An item's id tells which response it belongs to, so that it can be found again."""

from __future__ import annotations

import re
import secrets
from typing import Final

_RESPONSE: Final = re.compile(r"resp_[0-9a-f]{32}")
_ITEM: Final = re.compile(r"[a-z]+_([0-9a-f]{32})_i?\d+")


def new_response_id() -> str:
    """An id that can't be guessed."""
    return f"resp_{secrets.token_hex(16)}"


def is_response_id(text: str) -> bool:
    """Whether it could be one of ours. Anything else is not looked up: not every database would take it."""
    return _RESPONSE.fullmatch(text) is not None


def output_item_id(kind: str, response_id: str, index: int) -> str:
    """Id of the output item at ``index``; ``kind`` is OpenAI's prefix."""
    return f"{kind}_{response_id.removeprefix('resp_')}_{index}"


def input_item_id(kind: str, response_id: str, index: int) -> str:
    """Id of the input item at ``index``."""
    return f"{kind}_{response_id.removeprefix('resp_')}_i{index}"


def response_of(item_id: str) -> str | None:
    """Id of the response that an item belongs to; None for an id that is not ours."""
    found = _ITEM.fullmatch(item_id)
    return None if found is None else f"resp_{found[1]}"
