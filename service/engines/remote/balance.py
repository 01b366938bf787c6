"""Which server gets a call: the one that has the episode's prefix cached, else the least busy. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Final

_BLOCK: Final = 16
"""Tokens between two places at which a prefix may be recognised; vLLM caches by such blocks too."""


class Balancer:
    """Remembers where contexts were sampled. Servers are numbered.

    A prompt belongs to a server if it holds text that this server sampled: so an episode goes on where it
    is, while new prompts, alike as their beginnings may be, are spread.
    """

    def __init__(self, servers: int, *, max_imbalance: int, memory: int = 65_536) -> None:
        self.running = [0] * servers
        self._max_imbalance = max_imbalance
        self._memory = memory
        self._places: OrderedDict[int, int] = OrderedDict()
        self._turn = 0

    def choose(self, prompt_ids: Sequence[int], among: Collection[int]) -> int:
        """One of ``among``, which is not empty."""
        least = min(self.running[server] for server in among)
        home = self._home(prompt_ids)
        if home in among and self.running[home] - least <= self._max_imbalance:
            return home
        idle = sorted(server for server in among if self.running[server] == least)
        self._turn += 1
        return idle[self._turn % len(idle)]

    def remember(self, server: int, prompt_ids: Sequence[int], sampled: Sequence[int]) -> None:
        """``server`` has sampled ``sampled`` after the prompt; what goes on from there belongs to it."""
        tokens = [*prompt_ids, *sampled]
        whole = len(tokens) // _BLOCK
        if whole * _BLOCK <= len(prompt_ids):
            return  # too few were sampled to tell this context from others
        key = _keys(tokens)[-1]
        self._places[key] = server
        self._places.move_to_end(key)
        if len(self._places) > self._memory:
            self._places.popitem(last=False)

    def _home(self, prompt_ids: Sequence[int]) -> int:
        for key in reversed(_keys(prompt_ids)):
            if (server := self._places.get(key)) is not None:
                return server
        return -1


def _keys(tokens: Sequence[int]) -> list[int]:
    """One hash for each prefix of whole blocks, shortest first. Integers hash alike every time."""
    keys, key = [], 0
    for start in range(0, len(tokens) - _BLOCK + 1, _BLOCK):
        key = hash((key, *tokens[start : start + _BLOCK]))
        keys.append(key)
    return keys
