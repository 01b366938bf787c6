"""Loading of problems, and their resumable order."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.problems import DataError, Problem, ProblemStream, load_problems


def verl_row(question: Any = "1+1?", answer: Any = "2") -> dict[str, Any]:
    return {
        "data_source": "made",
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": answer},
    }


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    "row", [verl_row(), {"problem": "1+1?", "answer": "2"}, {"question": " 1+1? ", "answer": "2", "level": 3}]
)
def test_loads_both_layouts_in_both_formats(tmp_path: Path, suffix: str, row: dict[str, Any]) -> None:
    path = write(tmp_path / f"set{suffix}", [row, row])
    loaded = load_problems(path)
    assert loaded.problems == (Problem(f"{path}:0", "1+1?", "2"), Problem(f"{path}:1", "1+1?", "2"))
    assert loaded.too_long == 0


def test_accepts_numbers_as_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", [{"problem": "1+1?", "answer": 2}, verl_row(answer=2.5)])
    assert [p.answer for p in load_problems(path).problems] == ["2", "2.5"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "1+1?"}, r"it has no answer .*, but problem: rename the column"),
        ({"problem": "", "answer": "2"}, "problem: must not be empty"),
        ([1, 2], "must be an object with question and answer, got list"),
    ],
)
def test_names_invalid_row(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "set.jsonl", [verl_row(), row])
    with pytest.raises(DataError, match=rf"set\.jsonl, row 1: .*{message}"):
        load_problems(path)


def test_context_and_columns_are_kept(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    row = {"prompt": [system, {"role": "user", "content": "1+1?"}], "answer": "2", "level": 3}
    [problem] = load_problems(write(tmp_path / "set.jsonl", [row])).problems
    assert problem.messages == [system, {"role": "user", "content": "1+1?"}]
    assert problem.row == {**row, "id": problem.id, "question": "1+1?", "answer": "2"}


def test_fingerprints_include_the_context_but_not_other_columns() -> None:
    plain = Problem("p", "q", "a")
    others = [Problem("x", "q", "a", columns={"k": 1}), Problem("p", "q", "a", ({"role": "system"},))]
    prints = [ProblemStream([problem], seed=0).fingerprint for problem in (plain, *others)]
    assert prints[0] == prints[1] != prints[2]
    assert prints[0] == hashlib.sha256(b'["q", "a"]').hexdigest()[:16]  # as in runs without context


def test_names_line_with_invalid_json(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(verl_row()) + "\n{broken\n")
    with pytest.raises(DataError, match=r"set\.jsonl, row 1: not JSON"):
        load_problems(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no.parquet", None),
        ("no.jsonl", None),
        ("bad.parquet", b"PAR1 but not really"),
        ("bad.jsonl", b"\xff\xfe"),
        ("empty.jsonl", b""),
        ("set.csv", b"problem,answer"),
    ],
)
def test_names_unreadable_source(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_problems(path)


def test_drops_and_counts_long_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", [verl_row("a b c"), verl_row("a b c d"), verl_row("a")])
    loaded = load_problems(path, count_tokens=lambda p: len(p.question.split()), max_prompt_tokens=3)
    assert [p.id for p in loaded.problems] == [f"{path}:0", f"{path}:2"]
    assert loaded.too_long == 1
    with pytest.raises(DataError, match="no usable problems"):
        load_problems(path, count_tokens=lambda p: 9, max_prompt_tokens=3)
    with pytest.raises(ValueError, match="count_tokens"):
        load_problems(path, max_prompt_tokens=3)


def test_drops_and_counts_rows_without_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", [verl_row(answer=" "), verl_row()])
    loaded = load_problems(path)
    assert len(loaded.problems) == loaded.without_answer == 1


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (0.00001, "0.00001"),
        (1e20, "100000000000000000000"),
        (2.5, "2.5"),
        (-3.0, "-3.0"),
        (7, "7"),
        ("1e-5", "1e-5"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_numeric_answers_have_no_exponent(tmp_path: Path, answer: object, read: str, suffix: str) -> None:
    path = write(tmp_path / f"set{suffix}", [verl_row(answer=answer)])
    assert load_problems(path).problems[0].answer == read


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_nan_is_missing_answer(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"set{suffix}", [verl_row(answer=float("nan")), verl_row(answer=1.0)])
    loaded = load_problems(path)
    assert len(loaded.problems) == loaded.without_answer == 1


def test_rationales_are_cut_to_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", [verl_row(answer="6*12 = <<6*12=72>>72 (a dozen.\n#### 72")])
    assert load_problems(path).problems[0].answer == "72"


def test_drops_and_counts_bad_gold_answers_up_to_one_percent(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", [verl_row(answer=r"\frac{1"), *[verl_row()] * 99])
    loaded = load_problems(path)
    assert (len(loaded.problems), loaded.bad_gold) == (99, 1)
    write(path, [verl_row(), verl_row(answer=r"\frac{1"), *[verl_row()] * 97, verl_row(answer=")(1")])
    with pytest.raises(DataError, match=r"set\.jsonl: 2 of 100 .*row 1 \(unbalanced.*\), row 99 \(unbal"):
        load_problems(path)


def test_gold_answers_of_other_kinds_are_not_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", [verl_row(answer="((")])
    assert load_problems(path, check_gold=False).problems[0].answer == "(("
    with pytest.raises(DataError, match="1 of 1 gold answers"):
        load_problems(path)


def numbered(count: int) -> list[Problem]:
    return [Problem(f"made:{n}", f"{n}?", str(n)) for n in range(count)]


@given(size=st.integers(1, 12), seed=st.integers(0, 99), before=st.integers(0, 40), after=st.integers(0, 40))
def test_resumed_stream_continues_exactly(size: int, seed: int, before: int, after: int) -> None:
    whole = ProblemStream(numbered(size), seed=seed)
    whole.take(before)
    state = json.loads(json.dumps(whole.state()))
    resumed = ProblemStream(numbered(size), seed=seed)
    resumed.restore(state)
    assert resumed.take(after) == whole.take(after)
    assert resumed.state() == whole.state()


def test_each_epoch_has_every_problem_once_in_new_order() -> None:
    stream = ProblemStream(numbered(20), seed=0)
    first, second = stream.take(20), stream.take(20)
    assert sorted(first, key=lambda p: int(p.answer)) == numbered(20)
    assert set(first) == set(second)
    assert first != second
    assert stream.epoch == 1
    assert ProblemStream(numbered(20), seed=1).take(20) != first


def test_order_is_platform_independent() -> None:
    assert [p.answer for p in ProblemStream(numbered(6), seed=0).take(6)] == ["0", "5", "1", "4", "3", "2"]


def test_rejects_state_of_other_problems_or_seed() -> None:
    state = ProblemStream(numbered(5), seed=0).state()
    with pytest.raises(ValueError, match="problems differ"):
        ProblemStream(numbered(6), seed=0).restore(state)
    with pytest.raises(ValueError, match="seed 0, this one 1"):
        ProblemStream(numbered(5), seed=1).restore(state)
    with pytest.raises(ValueError, match="must not be empty"):
        ProblemStream([], seed=0)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("train/simplelr_math_35", 8521),  # two of 8,523 rows have an empty gold answer
        ("benchmarks/aime24", 30),
        ("benchmarks/aime25", 30),
        ("benchmarks/amc23", 40),
        ("benchmarks/hmmt25", 30),
        ("benchmarks/math500", 500),
        ("benchmarks/olympiad", 674),
    ],
)
def test_paper_files_load_completely(name: str, count: int) -> None:
    root = Path(os.environ.get("IHGRPO_DATA", "data"))
    path = root / f"{name}.parquet"
    if not path.exists():
        pytest.skip("needs the data: set IHGRPO_DATA to the folder that holds train/ and benchmarks/")
    assert len(load_problems(path).problems) == count
