from __future__ import annotations

from random import Random

import pytest

from trainer.quickstart.problems import FAMILIES, HARD, HELD_OUT_SHARE


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_deterministic_by_seed(name: str) -> None:
    make = FAMILIES[name]
    assert make(Random(1)) == make(Random(1))
    problems = [make(Random(seed)) for seed in range(50)]
    assert len({problem.text for problem in problems}) == 50
    assert {problem.family for problem in problems} == {name}
    assert all(problem.closing.count("{}") == 1 for problem in problems)


@pytest.mark.parametrize("name", FAMILIES)
def test_plan_ends_with_run_and_fits_turn_limit(name: str) -> None:
    for seed in range(50):
        plan = FAMILIES[name](Random(seed)).plan
        assert plan[-1].run
        assert sum(block.run for block in plan) <= 4
        assert all(block.name or block.run for block in plan), "a delayed block says what it sets"


def test_hard_families_exist() -> None:
    assert set(HARD) <= FAMILIES.keys()


def test_split_depends_on_text_and_has_stated_size() -> None:
    problems = [FAMILIES["product"](Random(seed)) for seed in range(1600)]
    share = sum(problem.held_out for problem in problems) / len(problems)
    assert share == pytest.approx(1 / HELD_OUT_SHARE, rel=0.4)


def test_half_of_guarded_divisions_divide_by_zero() -> None:
    zero = sum(len(FAMILIES["guarded_division"](Random(seed)).plan) == 3 for seed in range(200))
    assert 70 < zero < 130
