"""Labelled pairs of all kinds, from ``pairs.txt``."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.deferral.answer import last_boxed
from trainer.rewards.math_answers import judge

PAIRS = Path(__file__).with_name("pairs.txt")


def read_pairs() -> dict[str, list[tuple[bool, str, str]]]:
    """Return (correct, gold answer, boxed answer or response) by kind."""
    kinds: dict[str, list[tuple[bool, str, str]]] = {}
    kind = ""
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            kind = line.removeprefix("## ")
        elif not line.startswith("#"):
            correct, gold, answer = line.split(" | ", 2)
            kinds.setdefault(kind, []).append((correct == "1", gold, answer))
    return kinds


KINDS = read_pairs()


def is_correct(kind: str, gold: str, answer: str) -> bool:
    box = last_boxed(answer) if kind == "box extraction" else answer
    return box is not None and judge(gold, box) == "correct"


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts(kind: str) -> None:
    wrong = [pair for pair in KINDS[kind] if is_correct(kind, *pair[1:]) != pair[0]]
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_correct_and_incorrect_pairs(kind: str) -> None:
    assert len(KINDS[kind]) >= 15
    assert {correct for correct, _, _ in KINDS[kind]} == {True, False}


@pytest.mark.parametrize("kind", KINDS)
def test_gold_answers_match_themselves(kind: str) -> None:
    golds = {gold for _, gold, _ in KINDS[kind]}
    assert [gold for gold in golds if judge(gold, gold) != "correct"] == []
