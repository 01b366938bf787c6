"""Text to ids from one control token to the next, so that what was encoded before need not be again."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import tokenizers

_SHORT: Final = 10_000
"""Characters that ``encode`` may take. It holds the interpreter's lock until it is done, a second for half a
million of them; ``encode_batch`` lets other threads work, but wakes threads of its own."""
_REMEMBERED: Final = 1024
"""Segments of at most `_SHORT` characters: 40 MB if all of them are as long and have a token a character."""


class SegmentEncoder:
    """Encodes with control tokens, and remembers the segments between them.

    Most of a prompt was there before: the instruction, the system's turn, the conversation so far. A
    byte-level tokenizer takes control tokens out first and then reads each segment for itself, so the ids
    are those of the whole text. A tokenizer that might read one by what stands around it is given all.

    Safe to use from several threads.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._controls = {token.content: token_id for token_id, token in added.items()}
        # Of tokens that begin at one place the longest counts.
        names = sorted(self._controls, key=len, reverse=True)
        can_cut = names and all(map(_is_plain, added.values())) and _reads_apart(_state(tokenizer))
        self._cut = re.compile(f"({'|'.join(map(re.escape, names))})") if can_cut else None
        self._remember = lru_cache(_REMEMBERED)(self._array)

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``. A control token that it spells is one."""
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
        return array("I", self._encode(text))  # four bytes a token, where a list has 36

    def _encode(self, text: str) -> list[int]:
        return encode(self._tokenizer, text)


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """The ids of ``text``; which control tokens it may spell is the tokenizer's own setting."""
    if len(text) <= _SHORT:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return list(encoding.ids)


def _is_plain(token: tokenizers.AddedToken) -> bool:
    """Whether it is found wherever it is spelled, and takes nothing else with it."""
    return not (token.single_word or token.lstrip or token.rstrip or token.normalized)


def _state(tokenizer: tokenizers.Tokenizer) -> Any:
    """That of its pre-tokenizer. Of the whole it would take most of a second: it holds the vocabulary."""
    part: Any = tokenizer.pre_tokenizer
    return None if part is None else json.loads(part.__getstate__())


def _reads_apart(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether it treats a segment alike wherever it stands."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": parts}:
            return all(map(_reads_apart, parts))
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return True
        case {"type": "Split"}:
            return True
    return False
