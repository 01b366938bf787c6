"""Plans that answer the questions of `trainer.environments.multi_hop` with searches."""

from __future__ import annotations

import functools
from random import Random
from typing import Final

from service.tools.stubs import listing
from trainer.environments.multi_hop import Lookup, MultiHopQuestion, draw_question
from trainer.environments.settings import ToolSettings
from trainer.environments.tools import function_tool
from trainer.quickstart.problems.base import CLOSING, PlanBlock, PracticeProblem

SEARCH: Final = ToolSettings(function="trainer.environments.multi_hop:search", read_only=True)
GATHER_SHARE: Final = 0.3
"""Share of the questions with independent searches whose plan makes them at the same time."""
_NAMES: Final = "abc"


@functools.cache
def prompt_section() -> str:
    """Return the text that lists `search` in prompts."""
    return listing([function_tool(SEARCH).spec])


def multi_hop(rng: Random) -> PracticeProblem:
    """Return a question about people. Each search has its own block, except for `GATHER_SHARE`."""
    question = draw_question(rng)
    gathers = not question.is_chain and rng.random() < GATHER_SHARE
    plan = _gather_plan(question) if gathers else _plan(question)
    return PracticeProblem("multi_hop", question.text, question.answer, plan, CLOSING, uses_search=True)


def _plan(question: MultiHopQuestion) -> tuple[PlanBlock, ...]:
    blocks = []
    for number, lookup in enumerate(question.lookups):
        code = f"{_NAMES[number]} = search({_query(lookup, number)})[0].split()[-1]"
        code = code if number else f"from tools import search\n{code}"
        if number < len(question.lookups) - 1:
            blocks.append(PlanBlock(_reason(lookup), code, name=_NAMES[number]))
        else:
            code += f"\nprint({_result(question, list(_NAMES))})"
            blocks.append(PlanBlock(_reason(lookup), code, run=True))
    return tuple(blocks)


def _gather_plan(question: MultiHopQuestion) -> tuple[PlanBlock, ...]:
    count = len(question.lookups)
    calls = ", ".join(f"search.bind({_query(lookup, 0)})" for lookup in question.lookups)
    values = [f"{name}[0].split()[-1]" for name in _NAMES]
    code = (
        f"from tools import gather, search\n{', '.join(_NAMES[:count])} = gather({calls})\n"
        f"print({_result(question, values)})"
    )
    reason = f"I look up {count} things at once."  # prose: ok - a text that the model learns
    return (PlanBlock(reason, code, run=True),)


def _query(lookup: Lookup, number: int) -> str:
    """Return the query as a Python expression."""
    if lookup.person is None:
        return f'"{lookup.topic} of " + {_NAMES[number - 1]}'
    return f'"{lookup.topic} of {lookup.person}"'


def _reason(lookup: Lookup) -> str:
    return f"I look up the {lookup.topic}{'' if lookup.person is None else f' of {lookup.person}'}."


def _result(question: MultiHopQuestion, values: list[str]) -> str:
    """Return the expression of the answer; ``values`` are expressions of the lookups' results."""
    people = [lookup.person for lookup in question.lookups]
    match question.combine:
        case "last":
            return values[len(people) - 1]
        case "older":
            return f'"{people[0]}" if int({values[0]}) > int({values[1]}) else "{people[1]}"'
        case "sum":
            return " + ".join(f"int({value})" for value in values[: len(people)])
    return f'"yes" if {values[0]} == {values[1]} else "no"'
