"""The tokenizer of a Hugging Face checkpoint.

`HFTokenizer` implements the engines' ``Tokenizer`` protocol; `SegmentEncoder` caches encoded segments of
prompts."""

from __future__ import annotations

import inspect
import json
import re
import secrets
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Final, cast

import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from service.deferral.prompt import ControlText, TokenIds
from service.engines.base import EngineError

_TEMPLATE_INPUTS = frozenset({"tools", "documents"})
_RESERVED = (
    frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - _TEMPLATE_INPUTS
)


class HFTokenizer:
    """Implements ``service.engines.base.Tokenizer`` on a fast tokenizer.

    Args:
        model: directory or hub id of the checkpoint.
        tokenizer: the tokenizer, if it was read already.

    Raises:
        EngineError: the checkpoint has no fast tokenizer (``tokenizer.json``).
    """

    def __init__(self, model: str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self._tokenizer: Any = tokenizer or AutoTokenizer.from_pretrained(model)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer):
            raise EngineError(f"model {model!r} has no fast tokenizer: add a tokenizer.json to it")
        self.backend: tokenizers.Tokenizer = backend
        self._segments = SegmentEncoder(backend)

    @cached_property
    def _literal_backend(self) -> tokenizers.Tokenizer:
        """A copy that encodes control tokens as ordinary text.

        ``split_special_tokens`` alone is not enough: Qwen3 does not flag ``<tool_call>`` or ``<think>`` as
        special, so they would still be matched. Here every added token counts as special, except runs of
        white space, which some vocabularies add and which are not control tokens.
        """
        state = json.loads(self.backend.to_str())
        for token in state["added_tokens"]:
            token["special"] = not token["content"].isspace()
        literal = tokenizers.Tokenizer.from_str(json.dumps(state))
        literal.encode_special_tokens = True
        return literal

    @property
    def eos_token_id(self) -> int | None:
        return cast("int | None", self._tokenizer.eos_token_id)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token id, added tokens included."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str, *, allow_special: bool) -> list[int]:
        return self._segments.encode(text) if allow_special else encode(self._literal_backend, text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def render_chat(
        self,
        messages: Sequence[dict[str, object]],
        *,
        template_kwargs: dict[str, object] | None = None,
        continue_final: bool = False,
    ) -> list[int]:
        """Render and encode; see `service.engines.base.Tokenizer.render_chat`.

        Raises:
            EngineError: there is no chat template, ``template_kwargs`` has a reserved name, or the template
            failed.
        """
        extra: dict[str, Any] = dict(template_kwargs or {})
        if reserved := sorted(_RESERVED & extra.keys()):
            raise EngineError(f"chat template arguments: {reserved[0]!r} is reserved, remove it")
        guard = _Guard(self._controls)
        turns = [guard.message(message) for message in messages]
        if "tools" in extra:
            extra["tools"] = guard.plain(extra["tools"])
        try:
            text = self._tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=not continue_final,
                continue_final_message=continue_final,
                **extra,
            )
        except Exception as error:  # a template may raise anything
            raise EngineError(f"the chat template failed: {error}") from error
        return guard.encode(text, self)

    @cached_property
    def _controls(self) -> re.Pattern[str] | None:
        """A pattern of every added token except runs of white space."""
        names = [token.content for token in self.backend.get_added_tokens_decoder().values()]
        names = [name for name in names if name and not name.isspace()]
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None


class _Guard:
    """Passes plain text and token ids through a chat template.

    The spelling of a control token in plain text is split by a random mark, which no text contains by
    chance, so the template sees the rest of the text unchanged. Segments with a mark are then encoded as
    literal text.
    """

    def __init__(self, controls: re.Pattern[str] | None) -> None:
        self._controls = controls
        self._mark = f"x{secrets.token_hex(12)}x"
        self._place = f"y{secrets.token_hex(12)}y"
        self._sampled: list[tuple[int, ...]] = []
        self._marked = False

    def message(self, message: dict[str, object]) -> dict[str, object]:
        """Return ``message`` in the form that is passed to the template."""
        return {
            name: value if name == "role" else self._value(name, value) for name, value in message.items()
        }

    def plain(self, value: Any) -> Any:
        """Return ``value`` with the control tokens in its strings, including keys, split by the mark."""
        match value:
            case str():
                return self._break(value)
            case dict():
                return {self.plain(key): self.plain(item) for key, item in value.items()}
            case list() | tuple():
                return [self.plain(item) for item in value]
        return value

    def encode(self, text: str, tokenizer: HFTokenizer) -> list[int]:
        """Return the ids of the rendered ``text``."""
        if not self._marked:
            return tokenizer.encode(text, allow_special=True)
        ids: list[int] = []
        parts = re.split(f"{self._place}(\\d+){self._place}", text)  # text, index of sampled ids, text, ...
        for number, part in enumerate(parts):
            if number % 2:
                ids.extend(self._sampled[int(part)])
            else:
                ids.extend(self._encode_marked(part, tokenizer))
        return ids

    def _encode_marked(self, text: str, tokenizer: HFTokenizer) -> list[int]:
        if self._mark not in text or self._controls is None:
            return tokenizer.encode(text, allow_special=True) if text else []
        ids: list[int] = []
        at = 0
        for found in [*self._controls.finditer(text), None]:
            segment = text[at : found.start() if found else len(text)]
            if segment:
                literal = self._mark in segment
                ids += tokenizer.encode(segment.replace(self._mark, ""), allow_special=not literal)
            if found:
                ids += tokenizer.encode(found[0], allow_special=True)
                at = found.end()
        return ids

    def _value(self, name: str, value: object) -> object:
        if name != "content" or isinstance(value, str) or not isinstance(value, Sequence):
            return self.plain(value)
        return "".join(self._part(part) for part in value)

    def _part(self, part: object) -> str:
        if isinstance(part, ControlText):
            return part.text
        if isinstance(part, TokenIds):
            self._sampled.append(part.ids)
            self._marked = True
            return f"{self._place}{len(self._sampled) - 1}{self._place}"
        return self._break(str(part))

    def _break(self, text: str) -> str:
        if self._controls is None or not self._controls.search(text):
            return text
        self._marked = True
        return self._controls.sub(lambda found: self._mark.join(found[0]), text)


_SHORT: Final = 10_000
"""Longest text, in characters, to pass to ``encode``, which holds the GIL: one second for half a million
characters. ``encode_batch`` releases the GIL, but wakes up its own threads."""
_REMEMBERED: Final = 1024
"""Number of cached segments of at most `_SHORT` characters: at most 40 MB, at one token per character."""


class SegmentEncoder:
    """An encoder with a cache of the segments between control tokens.

    Most of a prompt was encoded before: the instruction, the system message, the conversation so far. A
    byte-level tokenizer splits the text at control tokens first and then encodes each segment independently,
    so the ids equal those of the whole text. Tokenizers that may encode a segment by its context get the
    whole text.

    Thread-safe.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._controls = {token.content: token_id for token_id, token in added.items()}
        # At one position, the longest control token wins.
        names = sorted(self._controls, key=len, reverse=True)
        can_cut = names and all(map(_is_plain, added.values())) and _reads_apart(_state(tokenizer))
        self._cut = re.compile(f"({'|'.join(map(re.escape, names))})") if can_cut else None
        self._remember = lru_cache(_REMEMBERED)(self._array)

    def encode(self, text: str) -> list[int]:
        """Encode ``text``, including the control tokens that it spells."""
        if self._cut is None:
            return self._encode(text)
        ids: list[int] = []
        for part in self._cut.split(text):
            if (control := self._controls.get(part)) is not None:
                ids.append(control)
            elif part:
                ids.extend(self._remember(part) if len(part) <= _SHORT else self._encode(part))
        return ids

    def _array(self, text: str) -> array[int]:
        return array("I", self._encode(text))  # four bytes per token; a list needs 36

    def _encode(self, text: str) -> list[int]:
        return encode(self._tokenizer, text)


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """Encode ``text``. The tokenizer's own settings decide which control tokens are recognised."""
    if len(text) <= _SHORT:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return list(encoding.ids)


def _is_plain(token: tokenizers.AddedToken) -> bool:
    """Whether the token is matched wherever it is spelled, without surrounding text."""
    return not (token.single_word or token.lstrip or token.rstrip or token.normalized)


def _state(tokenizer: tokenizers.Tokenizer) -> Any:
    """State of the pre-tokenizer. The state of the whole tokenizer includes the vocabulary and takes most of
    a second."""
    part: Any = tokenizer.pre_tokenizer
    return None if part is None else json.loads(part.__getstate__())


def _reads_apart(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether the pre-tokenizer treats a segment the same way in any context."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": parts}:
            return all(map(_reads_apart, parts))
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return True
        case {"type": "Split"}:
            return True
    return False
