"""Token ids in and out of an engine."""

from __future__ import annotations

import random
from collections.abc import Sequence

from service.engines.base import TokenChunk


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed * 1000 + length).choices(range(350), k=length)


def sampled(chunks: Sequence[TokenChunk]) -> list[int]:
    return [token_id for chunk in chunks for token_id in chunk.ids]
