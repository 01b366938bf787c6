"""Stop strings: end a model's text where one of them begins, however the tokens cut it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from service.engines.base import Engine, TokenChunk


@dataclass(frozen=True, slots=True)
class StopStringHit:
    """A stop string was found: all is over but the part of a chunk before it.

    ``ids`` are the tokens that it took with it; nobody is shown them.
    """

    ids: tuple[int, ...]


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string that is complete first begins; None if none is in ``text``.

    Of two that end at the same character the longer counts. So the place doesn't depend on how the text came.
    """
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that may turn out to begin one of ``stops``."""
    longest = min(len(text), max(map(len, stops), default=1) - 1)
    for length in range(longest, 0, -1):
        end = text[-length:]
        if any(len(stop) > length and stop.startswith(end) for stop in stops):
            return length
    return 0


async def until_stop(
    chunks: AsyncGenerator[TokenChunk, None], stops: Sequence[str], endings: Mapping[int, str]
) -> AsyncGenerator[TokenChunk | StopStringHit, None]:
    """``chunks`` up to a stop string; a chunk is held back as long as its text may belong to one.

    A chunk in which the stop string begins comes last, after `StopStringHit`: it keeps its ids, perhaps the
    execute marker's among them, and loses the rest of its text.

    Args:
        chunks: one call of an engine; closed at the end.
        stops: strings to stop at; none of them empty.
        endings: text of each token that ends a reply; it is no text of the model, and not searched.
    """
    async with aclosing(chunks):
        if not stops:
            async for chunk in chunks:
                yield chunk
            return
        held: list[tuple[TokenChunk, str]] = []
        async for chunk in chunks:
            ending = endings.get(chunk.ids[-1], "") if chunk.ids else ""
            held.append((chunk, chunk.text.removesuffix(ending)))
            text = "".join(part for _, part in held)
            if (at := find_stop(text, stops)) is not None:
                for item in _cut(held, at):
                    yield item
                return
            keep = len(text) if chunk.finish_reason is not None else len(text) - held_back(text, stops)
            while held and len(held[0][1]) <= keep:
                freed, part = held.pop(0)
                keep -= len(part)
                yield freed
        for freed, _ in held:
            yield freed


def reply_endings(engine: Engine) -> dict[int, str]:
    """Text of each token that ends a reply of ``engine``."""
    return {token: engine.tokenizer.decode([token]) for token in engine.eos_token_ids}


def _cut(held: Sequence[tuple[TokenChunk, str]], at: int) -> list[TokenChunk | StopStringHit]:
    whole: list[TokenChunk | StopStringHit] = []
    begun: list[TokenChunk | StopStringHit] = []
    taken: list[int] = []
    start = 0
    for chunk, part in held:
        if start >= at:
            taken += chunk.ids
        elif start + len(part) <= at:
            whole.append(chunk)
        else:
            begun.append(chunk._replace(text=part[: at - start], finish_reason=None))
        start += len(part)
    return [*whole, StopStringHit(tuple(taken)), *begun]
