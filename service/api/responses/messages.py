"""Turn items into messages as chat completions take them.

Only replies whose token ids were found in the store hold control tokens again. Anything else that a client
sends, items of earlier responses included, is plain text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

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
from service.api.thinking import without_thought
from service.api.wire import Json
from service.deferral.observation import observation_ids
from service.deferral.policy import DeferralPolicy
from service.engines.base import Tokenizer


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A whole reply of an earlier response, with the ids that the store has of it."""

    ids: tuple[int, ...]
    text: str


class Conversation:
    """A growing list of messages.

    Attributes:
        messages: as chat completions take them.
        proven: token ids of the messages that are stored replies, by index.

    Args:
        tokenizer: the model's.
        policy: how the model reads outputs.
    """

    def __init__(self, tokenizer: Tokenizer, policy: DeferralPolicy) -> None:
        self.messages: list[Json] = []
        self.proven: dict[int, tuple[int, ...]] = {}
        self._tokenizer = tokenizer
        self._policy = policy
        self._text: list[str] = []
        self._calls: list[Json] = []
        self._thought: list[str] = []

    def say(self, role: str, content: str) -> None:
        """A message of ``role``, to the letter."""
        self._end_reply()
        self.messages.append({"role": role, "content": content})

    def reply(self, reply: StoredReply) -> None:
        """An earlier reply, as it was sampled."""
        self.say("assistant", reply.text)
        self.proven[len(self.messages) - 1] = without_thought(reply.ids, self._tokenizer)

    def add(self, items: Iterable[InputItem | StoredReply]) -> None:
        """Items in order; what the model gave out in a row becomes one reply again."""
        for item in items:
            self._add(item)
        self._end_reply()

    def _add(self, item: InputItem | StoredReply) -> None:
        match item:
            case StoredReply():
                self.reply(item)
            case Message(role="assistant"):
                self._text.append(item.content)
            case Message():
                self.say(item.role, item.content)
            case Reasoning():
                self._thought += [part.text for part in item.content]
            case CodeInterpreterCall():
                if item.outputs is not None:  # without them there is nothing that the model was shown
                    logs = "".join(output.logs for output in item.outputs)
                    shown = self._tokenizer.decode(observation_ids(logs, self._tokenizer, self._policy))
                    in_block = self._policy.observation == "output_block"
                    self._text.append(shown if in_block else self._policy.marker + shown)
            case FunctionCall():
                function = {"name": item.name, "arguments": item.arguments}
                self._calls.append({"id": item.call_id, "type": "function", "function": function})
            case CustomToolCall():
                function = {"name": item.name, "arguments": json.dumps({"input": item.input})}
                self._calls.append({"id": item.call_id, "type": "function", "function": function})
            case FunctionCallOutput() | CustomToolCallOutput():
                self.say("tool", item.output)
                self.messages[-1]["tool_call_id"] = item.call_id

    def _end_reply(self) -> None:
        if self._text or self._calls or self._thought:
            message: Json = {"role": "assistant", "content": "".join(self._text)}
            if self._thought:
                message["reasoning_content"] = "".join(self._thought)
            if self._calls:
                message["tool_calls"] = self._calls
            self.messages.append(message)
        self._text, self._calls, self._thought = [], [], []
