"""Stop strings: end a reply where one of them begins, independent of token boundaries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from service.engines.base import TokenChunk


@dataclass(frozen=True, slots=True)
class StopStringHit:
    """A stop string was found. Only the text before it in a partly shown chunk follows.

    ``ids`` are the tokens of the stop string; they are counted and never shown.
    """

    ids: tuple[int, ...]
    text: str = ""
    """The stop string."""


def find_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Return the stop string that is complete first, after its start; None if ``text`` contains none.

    Of two that end at the same character, the longer one counts. The result therefore doesn't depend on how
    the text was split into chunks.
    """
    found = [(at + len(stop), at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1:] if found else None


def partial_stop_length(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest suffix of ``text`` that may be the beginning of a stop string."""
    longest = min(len(text), max(map(len, stops), default=1) - 1)
    for length in range(longest, 0, -1):
        end = text[-length:]
        if any(len(stop) > length and stop.startswith(end) for stop in stops):
            return length
    return 0


async def until_stop(
    chunks: AsyncGenerator[TokenChunk, None], stops: Sequence[str], endings: Mapping[int, str]
) -> AsyncGenerator[TokenChunk | StopStringHit, None]:
    """Yield ``chunks`` up to a stop string, holding back chunks whose text may belong to one.

    A chunk in which the stop string begins comes last, after `StopStringHit`. It keeps all of its ids, the
    execute marker's included, and only the text before the stop string.

    Args:
        chunks: one call of an engine; closed at the end.
        stops: strings to stop at; none of them empty.
        endings: text of each token that ends a reply. It isn't text of the model and isn't searched.
    """
    async with aclosing(chunks):
        buffer: list[tuple[TokenChunk, str]] = []
        async for chunk in chunks:
            ending = endings.get(chunk.ids[-1], "") if chunk.ids else ""
            buffer.append((chunk, chunk.text.removesuffix(ending)))
            text = "".join(part for _, part in buffer)
            if (found := find_stop(text, stops)) is not None:
                for item in _cut(buffer, *found):
                    yield item
                return
            keep = len(text)
            if chunk.finish_reason is None:
                keep -= partial_stop_length(text, stops)
            while buffer and len(buffer[0][1]) <= keep:
                released, part = buffer.pop(0)
                keep -= len(part)
                yield released
        for released, _ in buffer:
            yield released


def _cut(buffer: Sequence[tuple[TokenChunk, str]], at: int, stop: str) -> list[TokenChunk | StopStringHit]:
    whole: list[TokenChunk | StopStringHit] = []
    begun: list[TokenChunk | StopStringHit] = []
    taken: list[int] = []
    start = 0
    for chunk, part in buffer:
        if start >= at:
            taken += chunk.ids
        elif start + len(part) <= at:
            whole.append(chunk)
        else:
            begun.append(chunk._replace(text=part[: at - start], finish_reason=None))
        start += len(part)
    return [*whole, StopStringHit(tuple(taken), stop), *begun]
