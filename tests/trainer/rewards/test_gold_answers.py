"""All gold answers of the benchmarks and the training set, in other spellings and with a changed digit."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from service.deferral.answer import last_boxed
from trainer.rewards.math_answers import judge

DATA = Path(os.environ.get("IHGRPO_DATA", "data"))
FILES = (
    *(f"benchmarks/{name}" for name in ("aime24", "aime25", "amc23", "hmmt25", "math500", "olympiad")),
    "train/simplelr_math_35",
)


def gold_answers(file: str) -> list[str]:
    path = DATA / f"{file}.parquet"
    if not path.exists():
        pytest.skip("needs the data: set IHGRPO_DATA to the folder that holds benchmarks/ and train/")
    rows = pq.read_table(path, columns=["reward_model"])["reward_model"].to_pylist()
    return [row["ground_truth"] for row in rows if row["ground_truth"].strip()]


def thin_spaces(gold: str) -> str:
    return re.sub(r"(?<![\d.,])[1-9]\d{3,}(?![\d.])", lambda m: f"{int(m[0]):,}".replace(",", r"\,"), gold)


def mixed_number(gold: str) -> str:
    match = re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}", gold)
    if not match or not int(match[2]) % int(match[3]):
        return gold
    whole, rest = divmod(int(match[2]), int(match[3]))
    return rf"{match[1]}{whole}\frac{{{rest}}}{{{match[3]}}}" if whole else gold


def inequality(gold: str) -> str:
    match = re.fullmatch(r"\[([^,()\[\]]+),([^,()\[\]]+)\)", gold.strip())
    if not match:
        return gold
    low, high = match.groups()
    return rf"x \ge {low}" if r"\infty" in high else rf"{low} \le x < {high}"


VARIANTS: dict[str, Callable[[str], str]] = {
    "full stop": lambda gold: f"{gold}.",
    "thin spaces": thin_spaces,
    "degree sign": lambda gold: re.sub(r"\^\{?\\circ\}?", "°", gold),
    "Unicode minus": lambda gold: gold.replace("-", "−"),
    "mixed number": mixed_number,
    "inequality": inequality,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("file", FILES)
def test_spelling_variants_are_correct(file: str, variant: str) -> None:
    wrong = []
    for gold in gold_answers(file):
        answer = last_boxed(rf"\boxed{{{VARIANTS[variant](gold)}}}")
        if answer is None or judge(gold, answer) != "correct":
            wrong.append((gold, answer))
    assert wrong == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", FILES)
def test_changed_digit_is_incorrect(file: str) -> None:
    rng = random.Random(file)
    correct = []
    for gold in gold_answers(file):
        digits = [match.start() for match in re.finditer(r"\d", gold)]
        if digits:
            at = rng.choice(digits)
            answer = gold[:at] + str((int(gold[at]) + 3) % 10) + gold[at + 1 :]
            if judge(gold, answer) == "correct":
                correct.append((gold, answer))
    assert correct == []
