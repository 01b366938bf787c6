from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.episode import Outcome
from trainer.data.sources import load_source
from trainer.environments.multi_hop import (
    CITIES,
    PEOPLE,
    RELATIONS,
    RESULTS,
    MultiHopQuestion,
    TimelyAnswerReward,
    draw_question,
    facts,
    questions,
    search,
)
from trainer.rewards.protocol import FinishedEpisode


def test_each_fact_is_the_best_passage() -> None:
    assert len(facts()) == len(PEOPLE) * (len(RELATIONS) + 2)
    for (person, topic), value in facts().items():
        found = search(f"{topic} of {person}")
        assert len(found) == RESULTS
        assert found[0] == f"{person}, {topic}: {value}"


def test_other_wordings_find_the_fact_too() -> None:
    home = facts()["Ada", "home"]
    for query in ("Ada home", "ADA's home?", "home city of ada"):
        assert search(query)[0] == f"Ada, home: {home}"


@given(st.text(max_size=60))
def test_any_query_is_answered(query: str) -> None:
    assert all(isinstance(passage, str) for passage in search(query))


def answer_by_search(question: MultiHopQuestion) -> str:
    values: list[str] = []
    for lookup in question.lookups:
        person = values[-1] if lookup.person is None else lookup.person
        values.append(search(f"{lookup.topic} of {person}")[0].split()[-1])
    match question.combine:
        case "last":
            return values[-1]
        case "older":
            first, second = question.lookups
            return str(first.person if int(values[0]) > int(values[1]) else second.person)
        case "sum":
            return str(sum(map(int, values)))
    return "yes" if len(set(values)) == 1 else "no"


@given(st.integers(0, 10**6))
def test_the_lookups_give_the_answer(seed: int) -> None:
    question = draw_question(Random(seed))
    assert 2 <= len(question.lookups) <= 3
    assert question.answer == answer_by_search(question)
    assert question.is_chain == (question.combine == "last")


def test_answers_are_not_always_the_same() -> None:
    answers = {question.answer for question in questions(400, held_out=False)}
    assert {"yes", "no"} <= answers
    assert len(answers & set(CITIES)) > 10
    assert len(answers & set(PEOPLE)) > 20


def test_held_out_questions_are_other_ones() -> None:
    training = {question.text for question in questions(3000, held_out=False)}
    held_out = {question.text for question in questions(300, held_out=True)}
    assert len(held_out) > 200
    assert not training & held_out


def test_questions_are_the_same_each_time() -> None:
    first = load_source("multi-hop:50").problems
    assert first == load_source("multi-hop:60").problems[:50]
    assert [problem.id for problem in first[:2]] == ["multi-hop:0", "multi-hop:1"]
    held_out = load_source("multi-hop-held-out:5").problems
    assert held_out[0].id == "multi-hop-held-out:0"
    assert not {problem.question for problem in held_out} & {problem.question for problem in first}


def episode(text: str, waited: float | None) -> FinishedEpisode:
    return FinishedEpisode(
        text=text, outcome=Outcome.ANSWER, is_void=False, tokens=1, seconds=1.0, tool_wait_seconds=waited
    )


async def test_a_right_answer_is_worth_less_if_the_model_waited() -> None:
    reward = TimelyAnswerReward(discount=0.5, limit_s=2.0)
    row = {"answer": "Ada"}
    for waited, value in ((None, 1.0), (0.0, 1.0), (1.0, 0.75), (2.0, 0.5), (9.0, 0.5)):
        found = await reward(episode("\\boxed{Ada}", waited), row)
        assert (found.value, found.reason) == (value, "correct")


async def test_a_wrong_answer_gains_nothing_by_not_waiting() -> None:
    reward = TimelyAnswerReward()
    row = {"answer": "Ada"}
    values = [(await reward(episode("\\boxed{Tom}", waited), row)).value for waited in (0.0, 9.0)]
    assert values == [0.0, 0.0]


@pytest.mark.parametrize("options", [{"discount": 1.0}, {"discount": -0.1}, {"limit_s": 0.0}])
def test_a_discount_must_leave_something(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="discount must be in"):
        TimelyAnswerReward(**options)
