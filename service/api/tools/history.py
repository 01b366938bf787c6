"""Earlier replies with function calls, and whether stored token ids still match them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from service.engines.base import Tokenizer
from service.episode.reasoning_parser import THINK_CLOSE

_TAGGED: Final = re.compile(r"<tool_call>.*?(?:</tool_call>|\Z)", re.DOTALL)


class EarlierCall(NamedTuple):
    """A call in an earlier reply."""

    id: str
    name: str
    arguments: str


def is_current(ids: Sequence[int], content: str, calls: Sequence[str], tokenizer: Tokenizer) -> bool:
    """Return whether stored ids decode to a reply; they don't after a change of the model.

    Args:
        ids: stored ids of the reply.
        content: the reply's text, which leaves out the calls.
        calls: names of the functions that it calls.
        tokenizer: the model's.
    """
    if not all(0 <= token < tokenizer.vocab_size for token in ids):
        return False
    decoded, shown = tokenizer.decode(ids), content.rpartition(THINK_CLOSE)[2]
    if not calls:
        return decoded.strip() == shown.strip()
    return _outside_tags(decoded) == _outside_tags(shown) and all(name in decoded for name in calls)


def _outside_tags(text: str) -> str:
    """Return ``text`` without calls, observations and white space."""
    return "".join(_TAGGED.sub("", text).split())
