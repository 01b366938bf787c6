"""Questions about people that need several searches, and the corpus with the answers.

An environment for training with tools: the model's code calls `search`, as in ``search("teacher of Ada")``,
and must combine what several passages say. ``multi-hop:2000`` in a recipe's ``data`` generates questions,
and ``multi-hop-held-out:200`` generates others. The corpus is the same each time.

Two kinds of questions: chains, in which a search needs the result of the one before, and questions about two
or three people, whose searches are independent of each other.
"""

from __future__ import annotations

import functools
import math
import re
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Literal

from trainer.rewards.protocol import FinishedEpisode
from trainer.rewards.scorer import Reward
from trainer.rewards.shipped import ExactMatchReward

HELD_OUT_SHARE: Final = 16
"""One in this many questions is held out from training."""
RESULTS: Final = 3
"""Passages that a search returns, at most."""
PEOPLE: Final = (
    "Mara", "Tom", "Ada", "Ravi", "Lena", "Omar", "Yuki", "Nils", "Ines", "Paul", "Zoe", "Ken", "Maria",
    "John", "Peter", "Sara", "Ali", "Chen", "Olga", "Ivan", "Emma", "Noah", "Mia", "Liam", "Lucas", "Eva",
    "Max", "Kate", "Sam", "Alex",
)  # fmt: skip
CITIES: Final = (
    "Rome", "Berlin", "Vienna", "Oslo", "Cairo", "Tokyo", "Delhi", "Lima", "Boston", "Chicago", "London",
    "Dublin", "Athens", "Prague", "Warsaw",
)  # fmt: skip
RELATIONS: Final = ("teacher", "boss", "doctor", "sister", "coach")
Topic = str
"""Subject of a passage about a person: one of `RELATIONS`, ``home`` or ``age``."""


@functools.cache
def facts() -> dict[tuple[str, Topic], str]:
    """Return the facts of the corpus, by person and topic. No two people have the same age."""
    rng = Random("multi-hop")  # noqa: S311 - not for secrets
    ages = rng.sample(range(11, 99), len(PEOPLE))
    found: dict[tuple[str, Topic], str] = {}
    for person, age in zip(PEOPLE, ages, strict=True):
        others = [name for name in PEOPLE if name != person]
        for relation in RELATIONS:
            found[person, relation] = rng.choice(others)
        found[person, "home"] = rng.choice(CITIES)
        found[person, "age"] = str(age)
    return found


def search(query: str) -> list[str]:
    """Search an encyclopedia of people. Passages end with the value, best first.

    Args:
        query: For example "teacher of Ada", "home of Tom" or "age of Tom".

    Returns:
        Passages.
    """
    words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query))
    if not words:
        return []
    # BM25, in which a word of the title counts as much as five of the text. SQLite's ranks are negative.
    statement = (
        "SELECT title || ', ' || passage FROM passages WHERE passages MATCH ? "
        "ORDER BY bm25(passages, 5.0, 1.0), rowid LIMIT ?"
    )
    with _index_lock:
        return [row[0] for row in _index().execute(statement, (words, RESULTS))]


_index_lock = threading.Lock()


@functools.cache
def _index() -> sqlite3.Connection:
    """Return the full-text index of the corpus. Used under a lock, because calls come from many threads."""
    index = sqlite3.connect(":memory:", check_same_thread=False)
    index.execute("CREATE VIRTUAL TABLE passages USING fts5(title, passage)")
    rows = [(person, f"{topic}: {value}") for (person, topic), value in facts().items()]
    index.executemany("INSERT INTO passages VALUES (?, ?)", rows)
    return index


@dataclass(frozen=True, slots=True)
class Lookup:
    """One search: the ``topic`` of a person, who is named or is the result of the lookup before."""

    topic: Topic
    person: str | None
    """None for the result of the lookup before."""


class TimelyAnswerReward(ExactMatchReward):
    """1.0 for the right answer, less if the model waited for searches; 0.0 for a wrong one.

    A penalty that is subtracted from wrong answers too would reward a model for giving up without a search.
    Reasons: as `ExactMatchReward`. An unknown waiting time counts as 0.

    Args:
        discount: part of the reward that a right answer loses at ``limit_s``; linear up to there.
        limit_s: seconds at which the discount is complete.
    """

    def __init__(self, *, discount: float = 0.5, limit_s: float = 1.5) -> None:
        super().__init__()
        if not 0 <= discount < 1 or not 0 < limit_s < math.inf:
            raise ValueError(f"discount must be in [0, 1) and limit_s positive, got {discount} and {limit_s}")
        self._discount, self._limit = discount, limit_s

    async def __call__(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> Reward:
        reward = await super().__call__(episode, row)
        waited = min((episode.tool_wait_seconds or 0.0) / self._limit, 1.0)
        return Reward(reward.value * (1.0 - self._discount * waited), reward.reason)


Combine = Literal["last", "older", "sum", "same"]
"""Rule that makes the answer from the results: the last one, the older of two people, the sum, or yes if all
are the same."""


@dataclass(frozen=True, slots=True)
class MultiHopQuestion:
    """A question with its lookups and its answer."""

    text: str
    answer: str
    lookups: tuple[Lookup, ...]
    combine: Combine

    @property
    def is_chain(self) -> bool:
        """Whether each lookup needs the result of the one before."""
        return any(lookup.person is None for lookup in self.lookups)

    @property
    def held_out(self) -> bool:
        """Whether the question is held out from training. Depends on its text only."""
        return zlib.crc32(self.text.encode()) % HELD_OUT_SHARE == 0


def draw_question(rng: Random) -> MultiHopQuestion:
    """Return a random question. Half of them are chains."""
    return _chain(rng) if rng.random() < 0.5 else _parallel(rng)


def questions(count: int, *, held_out: bool) -> Iterator[MultiHopQuestion]:
    """Yield ``count`` questions of one side of the held-out split, the same ones each time."""
    rng = Random(f"multi-hop/{held_out}")  # noqa: S311 - not for secrets
    while count:
        question = draw_question(rng)
        if question.held_out == held_out:
            count -= 1
            yield question


def _chain(rng: Random) -> MultiHopQuestion:
    person = rng.choice(PEOPLE)
    relations = [rng.choice(RELATIONS) for _ in range(rng.choice((1, 2)))]
    last = rng.choice(("home", "age", rng.choice(RELATIONS)))
    lookups, name, phrase = [], person, person
    for number, relation in enumerate(relations):
        lookups.append(Lookup(relation, None if number else person))
        name, phrase = facts()[name, relation], f"the {relation} of {phrase}"
    lookups.append(Lookup(last, None))
    text = {"home": f"Where does {phrase} live?", "age": f"How old is {phrase}?"}.get(
        last, f"Who is the {last} of {phrase}?"
    )
    return MultiHopQuestion(text, facts()[name, last], tuple(lookups), "last")


def _parallel(rng: Random) -> MultiHopQuestion:
    combine: Combine = rng.choice(("older", "sum", "same"))
    people = rng.sample(PEOPLE, 3 if combine == "sum" else 2)
    topic = "home" if combine == "same" else "age"
    values = [facts()[person, topic] for person in people]
    if combine == "older":
        text = f"Who is older, {people[0]} or {people[1]}?"
        answer = people[0] if int(values[0]) > int(values[1]) else people[1]
    elif combine == "sum":
        text = f"How old are {people[0]}, {people[1]} and {people[2]} together?"
        answer = str(sum(map(int, values)))
    else:
        text = f"Do {people[0]} and {people[1]} live in the same city?"
        answer = "yes" if values[0] == values[1] else "no"
    return MultiHopQuestion(text, answer, tuple(Lookup(topic, person) for person in people), combine)
