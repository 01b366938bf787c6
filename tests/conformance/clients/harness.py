"""Shared code of the client programs. Each runs with the clients' own Python, ``PROGRAM URL KEY``."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable

BASE_URL, KEY = sys.argv[1] + "/v1", sys.argv[2]
MODEL = "scripted"
CITY_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city.", "parameters": CITY_SCHEMA},
}
PLACE_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}
HELLO = "Hello there, how are you?"

_features: dict[str, Callable[[], None]] = {}


def feature(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """A function that uses one feature and raises if it does not work."""

    def register(use: Callable[[], None]) -> Callable[[], None]:
        _features[name] = use
        return use

    return register


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def run() -> None:
    """Use every feature; print what became of each, null for right."""
    outcomes: dict[str, str | None] = {}
    for name, use in _features.items():
        try:
            use()
            outcomes[name] = None
        except Exception:
            outcomes[name] = traceback.format_exc()
    print("OUTCOMES " + json.dumps(outcomes))
