"""Ordinary chat: requests that need no code to run, answered by the checkpoint before it is trained.

Trained on problems alone, a small model answers every greeting with a calculation.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final

from service.engines.base import Engine, Sampling
from trainer.training.run_files import read_complete_lines, write_atomically

_TOPICS: Final = (
    "a lighthouse", "the night train", "an old bicycle", "a rainy market", "my garden", "the desert",
    "a wooden boat", "a violin", "the harbour", "a stray dog", "the last day of school", "a mountain hut",
)  # fmt: skip
_SENTENCES: Final = (
    "The shop opens at nine.", "I lost my umbrella.", "We will meet at the bridge.",
    "My brother plays the piano.", "The soup is too salty.", "Please close the window.",
    "The children are asleep.", "Tomorrow we travel to the coast.",
)  # fmt: skip
_LANGUAGES: Final = ("Spanish", "French", "German", "Italian", "Portuguese", "Dutch")
_THINGS: Final = (
    "a rainbow", "a glacier", "an eclipse", "a compass", "a vaccine", "gravity", "recycling", "an orchestra",
    "a mortgage", "coral reefs", "the printing press", "sleep", "volcanoes", "honey bees", "democracy",
)  # fmt: skip
_COUNTRIES: Final = (
    "Norway", "Kenya", "Peru", "Vietnam", "Poland", "Morocco", "New Zealand", "Chile", "Iceland", "Egypt",
)  # fmt: skip
_FUNCTIONS: Final = (
    "rotates a list by k places", "merges two dictionaries", "checks whether two words are anagrams",
    "removes punctuation from a text", "finds the longest word in a sentence", "transposes a matrix",
    "groups words by their first letter", "validates an email address", "counts the lines of a file",
    "chunks a list into pieces of equal length", "converts a title to snake case",
)  # fmt: skip
_CONCEPTS: Final = (
    "a generator", "a closure", "a virtual environment", "recursion", "a context manager", "an exception",
    "a set", "a lambda expression", "a dataclass", "slicing",
)  # fmt: skip
_PEOPLE: Final = ("my aunt", "a colleague", "my teacher", "a friend", "my neighbours", "my cousin")
_OCCASIONS: Final = ("a wedding", "a new job", "moving house", "a lost parcel", "a concert", "a late invoice")
_SMALL_TALK: Final = (
    "Hello there, nice to see you.", "Good evening!", "Hi, how is it going?", "Who are you?",
    "What can you do?", "Thank you, that was useful.", "Bye for now!", "Can you cheer me up a little?",
    "I am bored. Any ideas?", "Tell me something interesting.", "Do you speak other languages?",
    "I had a long day.", "Good to meet you.", "Are you a person?", "That is all for today, thanks.",
)  # fmt: skip


def ordinary_requests(seed: int, count: int) -> list[str]:
    """Return ``count`` different requests, 200 at most, the same for a seed. Some ask to be shown code."""
    rng = Random(f"chat {seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        found[_request(rng)] = None
        if len(found) == _MOST:
            break
    return list(found)


_MOST: Final = 200
"""A bound far below the number of different requests, so that drawing them ends."""


def _request(rng: Random) -> str:
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice(_SMALL_TALK)
    if kind < 4:
        form = rng.choice(
            ("Write a haiku about {}.", "Describe {} in two sentences.", "Write three lines about {}.",
             "Give me a title for a story about {}.")
        )  # fmt: skip
        return form.format(rng.choice(_TOPICS))
    if kind == 4:
        return f'Translate into {rng.choice(_LANGUAGES)}: "{rng.choice(_SENTENCES)}"'
    if kind == 5:
        form = rng.choice(("Write a short message to {} about {}.", "Draft a friendly note to {} about {}."))
        return form.format(rng.choice(_PEOPLE), rng.choice(_OCCASIONS))
    if kind < 8:
        form = rng.choice(("What is {}?", "Explain {} to a child.", "Why does {} matter?"))
        return form.format(rng.choice(_THINGS))
    if kind == 8:
        form = rng.choice(("What is {} known for?", "Which language do people speak in {}?"))
        return form.format(rng.choice(_COUNTRIES))
    if kind == 9:
        return f"What is {rng.choice(_CONCEPTS)} in Python?"
    form = rng.choice(("Show me a Python function that {}.", "How would you write a function that {}?"))
    return form.format(rng.choice(_FUNCTIONS))


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and the checkpoint's own answer, without the end-of-turn token."""

    request: str
    answer: str


async def sample_chat(
    engine: Engine, requests: Sequence[str], *, max_tokens: int, marker: str
) -> list[Exchange]:
    """Let the checkpoint answer ``requests``, greedily and without an added instruction.

    Answers that are cut at ``max_tokens``, are empty or contain the execute marker are left out.

    Args:
        engine: started.
        requests: user messages.
        max_tokens: of an answer.
        marker: the execute marker.

    Raises:
        EngineError: the engine failed.
    """
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, logprobs=False)

    async def answer(request: str) -> Exchange | None:
        prompt = engine.tokenizer.render_chat(
            [{"role": "user", "content": request}], template_kwargs={"enable_thinking": False}
        )
        ids: list[int] = []
        finish = None
        async for chunk in engine.generate(prompt, sampling, engine.eos_token_ids):
            ids += chunk.ids
            finish = chunk.finish_reason
        text = engine.tokenizer.decode(ids[:-1] if finish == "stop" else ids).strip()
        return Exchange(request, text) if finish == "stop" and text and marker not in text else None

    answered = await asyncio.gather(*(answer(request) for request in requests))
    return [exchange for exchange in answered if exchange is not None]


def save_chat(path: Path, exchanges: Sequence[Exchange]) -> None:
    """Write JSON Lines, whole or not at all."""
    lines = [json.dumps(asdict(exchange), ensure_ascii=False) + "\n" for exchange in exchanges]
    write_atomically(path, "".join(lines).encode())


def load_chat(path: Path) -> list[Exchange]:
    """Read what `save_chat` wrote."""
    return [Exchange(**json.loads(line)) for line in read_complete_lines(path)]
