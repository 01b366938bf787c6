"""The output items of a response, and the events that tell how they come about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from service.api.responses.ids import output_item_id
from service.api.wire import Json

Events = list[Json]


class OutputItem(Protocol):
    """An item that grows."""

    def close(self, status: str) -> Events:
        """Nothing more is added; ``status`` is completed or incomplete."""
        ...


@dataclass(slots=True)
class Output:
    """All items so far, as the response object holds them."""

    response_id: str
    items: list[Json] = field(default_factory=list)

    def open(self, kind: str, item: Json) -> tuple[int, str]:
        """A place for a new item; gives its index and its id."""
        index = len(self.items)
        item_id = output_item_id(kind, self.response_id, index)
        self.items.append({"id": item_id, **item})
        return index, item_id

    def added(self, index: int) -> Json:
        """The event that ``index`` is there."""
        return {"type": "response.output_item.added", "output_index": index, "item": dict(self.items[index])}

    def done(self, index: int, **final: object) -> Json:
        """The event that ``index`` is as it will stay."""
        self.items[index] = {**self.items[index], **final}
        return {"type": "response.output_item.done", "output_index": index, "item": dict(self.items[index])}


class TextItem:
    """A message, or a thought: one part of text that is written piece by piece."""

    def __init__(
        self,
        output: Output,
        *,
        thought: bool,
        logprobs: bool = False,
        seal: Callable[[str], str] | None = None,
    ) -> None:
        self.thought = thought
        self._output = output
        self._pieces: list[str] = []
        self._logprobs: list[Json] = []
        self._wants_logprobs = logprobs
        self._seal = seal if thought else None
        self._name = "response.reasoning_text" if thought else "response.output_text"
        head: Json = {"type": "reasoning", "summary": []} if thought else {"type": "message"}
        role: Json = {} if thought else {"role": "assistant"}
        self._index, self._id = output.open(
            "rs" if thought else "msg", {**head, "status": "in_progress", "content": [], **role}
        )

    def open(self) -> Events:
        return [
            self._output.added(self._index),
            self._event("response.content_part.added", part=self._part("")),
        ]

    def write(self, text: str, logprobs: list[Json]) -> Events:
        """More text, and the log-probabilities of its tokens where they are asked for."""
        self._pieces.append(text)
        self._logprobs += logprobs
        told: Json = {} if self.thought else {"logprobs": logprobs}
        return [self._event(f"{self._name}.delta", delta=text, **told)]

    def close(self, status: str) -> Events:
        text = "".join(self._pieces)
        part = self._part(text)
        told: Json = {} if self.thought else {"logprobs": self._logprobs}
        sealed: Json = {} if self._seal is None else {"encrypted_content": self._seal(text)}
        return [
            self._event(f"{self._name}.done", text=text, **told),
            self._event("response.content_part.done", part=part),
            self._output.done(self._index, status=status, content=[part], **sealed),
        ]

    def _part(self, text: str) -> Json:
        if self.thought:
            return {"type": "reasoning_text", "text": text}
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": list(self._logprobs) if self._wants_logprobs else [],
        }

    def _event(self, event_type: str, **fields: object) -> Json:
        return {
            "type": event_type,
            "item_id": self._id,
            "output_index": self._index,
            "content_index": 0,
            **fields,
        }


class FunctionCallItem:
    """A call of a function of the client."""

    def __init__(self, output: Output, name: str, call_id: str) -> None:
        self._output = output
        self._name = name
        self._pieces: list[str] = []
        self._index, self._id = output.open(
            "fc",
            {
                "type": "function_call",
                "status": "in_progress",
                "call_id": call_id,
                "name": name,
                "arguments": "",
            },
        )

    def open(self) -> Events:
        return [self._output.added(self._index)]

    def write(self, text: str) -> Events:
        """More of the arguments."""
        self._pieces.append(text)
        return [self._event("response.function_call_arguments.delta", delta=text)]

    def close(self, status: str) -> Events:
        arguments = "".join(self._pieces)
        return [
            self._event("response.function_call_arguments.done", name=self._name, arguments=arguments),
            self._output.done(self._index, status=status, arguments=arguments),
        ]

    def _event(self, event_type: str, **fields: object) -> Json:
        return {"type": event_type, "item_id": self._id, "output_index": self._index, **fields}
