"""From items to messages as chat completions take them; the model sees its own words as they were."""

from __future__ import annotations

import json
from collections.abc import Iterable

from service.api.responses.items import (
    CodeInterpreterCall,
    CustomToolCall,
    CustomToolCallOutput,
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    Message,
    Reasoning,
)
from service.api.thinking import CLOSE, OPEN
from service.api.wire import Json
from service.deferral.observation import observation_ids
from service.engines.base import Tokenizer


class Conversation:
    """Grows a list of messages.

    Args:
        tokenizer: the model's.
        marker: the execute marker.
    """

    def __init__(self, tokenizer: Tokenizer, marker: str) -> None:
        self.messages: list[Json] = []
        self._tokenizer = tokenizer
        self._marker = marker
        self._text: list[str] = []
        self._calls: list[Json] = []
        self._thinking = False

    def say(self, role: str, content: str) -> None:
        """A message of ``role``, to the letter."""
        self._end_reply()
        self.messages.append({"role": role, "content": content})

    def add(self, items: Iterable[InputItem]) -> None:
        """Items in order; what the model gave out in a row becomes one reply again."""
        for item in items:
            self._add(item)
        self._end_reply()

    def _add(self, item: InputItem) -> None:
        match item:
            case Message(role="assistant"):
                self._think(False)
                self._text.append(item.content)
            case Message():
                self.say(item.role, item.content)
            case Reasoning():
                self._think(True)
                self._text += [part.text for part in item.content]
            case CodeInterpreterCall():
                if item.outputs is not None:  # without them there is nothing that the model was shown
                    logs = "".join(output.logs for output in item.outputs)
                    shown = self._tokenizer.decode(observation_ids(logs, self._tokenizer))
                    self._text.append(self._marker + shown)
            case FunctionCall():
                self._think(False)
                function = {"name": item.name, "arguments": item.arguments}
                self._calls.append({"id": item.call_id, "type": "function", "function": function})
            case CustomToolCall():
                self._think(False)
                function = {"name": item.name, "arguments": json.dumps({"input": item.input})}
                self._calls.append({"id": item.call_id, "type": "function", "function": function})
            case FunctionCallOutput() | CustomToolCallOutput():
                self.say("tool", item.output)
                self.messages[-1]["tool_call_id"] = item.call_id

    def _think(self, thinking: bool) -> None:
        if thinking and not self._thinking:
            self._text.append(f"{OPEN}\n")
        elif self._thinking and not thinking:
            self._text.append(f"\n{CLOSE}\n\n")
        self._thinking = thinking

    def _end_reply(self) -> None:
        self._think(False)
        if self._text or self._calls:
            message: Json = {"role": "assistant", "content": "".join(self._text)}
            if self._calls:
                message["tool_calls"] = self._calls
            self.messages.append(message)
        self._text, self._calls = [], []
