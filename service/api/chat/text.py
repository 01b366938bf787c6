"""From the model's text to the fields of a message: reasoning, content, calls of the client's functions."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from service.api.functions.declared import Functions
from service.api.functions.hermes import (
    CallBegun,
    CallDone,
    CallFailed,
    CallWrote,
    HermesEvent,
    HermesParser,
    Said,
)
from service.api.thinking import Parted, ThinkSplitter

Fields = dict[str, Any]
"""Fields of a message, or what is added to them."""


class MessageText:
    """Takes text as it comes, gives the delta that it adds to the message, and keeps the whole.

    Args:
        prompt_end: the last characters of the prompt, without ``prefix``.
        prefix: what was written for the model at the beginning of its reply.
        functions: those that the reply may call; None where ``<tool_call>`` is no call of them.
        strict: raise for a call that can't be made; otherwise its text becomes content.
    """

    def __init__(
        self, prompt_end: str, prefix: str, functions: Functions | None, *, strict: bool = False
    ) -> None:
        self._splitter = ThinkSplitter(prompt_end)
        self._parser = None if functions is None else HermesParser(functions.check, strict=strict)
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[Fields] = []
        self._arguments: list[list[str]] = []
        self.finished_calls = 0
        if self._parser is not None and prefix:
            self._take(self._parser.feed(prefix), [])

    def written(self, text: str) -> Fields:
        """The model wrote ``text``.

        Raises:
            CallError: a call that can't be made.
        """
        return self._delta(self._splitter.feed(text))

    def given(self, text: str) -> Fields:
        """``text`` was given to the model."""
        return self._delta(self._splitter.given(text))

    def end(self, *, cut_off: bool) -> Fields:
        """What was held back; ``cut_off`` where a limit ended the reply.

        Raises:
            CallError: as `written`.
        """
        delta = self._delta(self._splitter.end())
        if self._parser is not None:
            calls: list[Fields] = []
            said = self._take(self._parser.end(cut_off=cut_off), calls)
            _add(delta, said, calls)
        return delta

    def message(self) -> Fields:
        """The message as a whole."""
        content = "".join(self._content)
        message: Fields = {"role": "assistant", "content": content, "refusal": None}
        if reasoning := "".join(self._reasoning):
            # Clients differ in which of the two names they read.
            message |= {"reasoning": reasoning, "reasoning_content": reasoning}
        if self._calls:
            message["content"] = content or None
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": "".join(arguments)},
                }
                for call, arguments in zip(self._calls, self._arguments, strict=True)
            ]
        return message

    def _delta(self, parted: Parted) -> Fields:
        delta: Fields = {}
        if parted.reasoning:
            self._reasoning.append(parted.reasoning)
            delta |= {"reasoning": parted.reasoning, "reasoning_content": parted.reasoning}
        said = parted.content
        calls: list[Fields] = []
        if self._parser is None:
            self._content.append(said)
        else:
            said = self._take(self._parser.feed(said), calls)
        _add(delta, said, calls)
        return delta

    def _take(self, events: Sequence[HermesEvent], deltas: list[Fields]) -> str:
        """Note ``events``; append the deltas of calls; give the text between them."""
        said = ""
        for event in events:
            match event:
                case Said(text):
                    said += text
                case CallBegun(index, name):
                    call: Fields = {"id": f"call_{secrets.token_hex(12)}", "name": name}
                    self._calls.append(call)
                    self._arguments.append([])
                    function = {"name": name, "arguments": ""}
                    deltas.append(
                        {"index": index, "id": call["id"], "type": "function", "function": function}
                    )
                case CallWrote(index, text):
                    self._arguments[index].append(text)
                    _append_arguments(deltas, index, text)
                case CallDone():
                    self.finished_calls += 1
                case CallFailed():
                    self._calls.pop()
                    self._arguments.pop()
        self._content.append(said)
        return said


def _append_arguments(deltas: list[Fields], index: int, text: str) -> None:
    """One entry a call and delta: accumulators of clients join what comes later, not what comes together."""
    if deltas and deltas[-1]["index"] == index:
        deltas[-1]["function"]["arguments"] += text
    else:
        deltas.append({"index": index, "function": {"arguments": text}})


def _add(delta: Fields, said: str, calls: list[Fields]) -> None:
    if said:
        before = delta.get("content", "")
        delta["content"] = f"{before}{said}"
    if calls:
        delta["tool_calls"] = [*delta.get("tool_calls", ()), *calls]
