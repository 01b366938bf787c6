from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.readers import DataError, read_rows, source_name

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}]


def lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n\n" for row in rows).encode()


def parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return bytes(sink.getvalue().to_pybytes())


WRITERS: dict[str, Callable[[Sequence[Any]], bytes]] = {
    "set.jsonl": lines,
    "set.ndjson": lines,
    "set.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "set.json": lambda rows: json.dumps(rows).encode(),
    "wrapped.json": lambda rows: json.dumps({"version": 1, "data": rows}).encode(),
    "lines.json": lines,
    "set.json.gz": lambda rows: gzip.compress(json.dumps(rows, indent=1).encode()),
    "v1.5.parquet": parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_formats(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WRITERS[name](ROWS))
    assert list(read_rows(path)) == list(read_rows(str(path))) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.csv", b"question,answer", r"set\.csv: must be a \.parquet, \.jsonl or \.json file"),
        ("set.parquet.gz", b"", "must be a .parquet"),
        ("set.json", b'"text"', "must be a list of rows, got str"),
        ("set.json", b'{"a": 1}', "must be a list of rows, or an object with one list"),
        ("set.json", b'{"train": [], "test": []}', "an object with one list"),
        ("set.json", b"{broken", r"set\.json: not JSON"),
        ("set.jsonl", b'{"question": "1"}\n{broken\n', r"set\.jsonl, row 1: not JSON"),
        ("set.jsonl", b"\xff\xfe\n", r"set\.jsonl, row 0: not UTF-8"),
        ("set.jsonl.gz", b"not gzip", r"set\.jsonl\.gz: Not a gzipped file"),
        ("set.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)[:-12], r"set\.jsonl\.gz: "),
        ("set.parquet", b"PAR1 but not really", r"set\.parquet: "),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(path))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.jsonl\.gz: the file does not exist"):
        list(read_rows(str(tmp_path / "no.jsonl.gz")))
    with pytest.raises(DataError, match="hub id such as org/name:config:split"):
        list(read_rows("a/b/c"))


def folder(path: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lines([{"file": name, "index": index}]))
    return path


def files(source: str | Path, **options: Any) -> list[str]:
    return [row["file"] for row in read_rows(source, **options)]


def test_folders_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    path = folder(tmp_path, "b.jsonl", "a/z.jsonl", "a/.hidden.jsonl", ".cache/x.jsonl", "README.md")
    assert files(path) == ["a/z.jsonl", "b.jsonl"]
    with pytest.raises(DataError, match=r"the folder has no \.parquet"):
        files(folder(tmp_path / "empty", "README.md"))


def test_splits_of_folders(tmp_path: Path) -> None:
    path = folder(
        tmp_path, "data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test.jsonl"
    )
    assert files(path) == ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]
    assert files(path, splits=("test", "validation")) == files(f"{path}:test") == ["data/test.jsonl"]
    with pytest.raises(DataError, match=r"has the splits test, train\. hint: name one"):
        files(path, splits=("validation",))
    assert files(folder(tmp_path / "one", "test.jsonl")) == ["test.jsonl"]
    # Names of benchmarks are not splits.
    assert files(folder(tmp_path / "sets", "aime24.jsonl", "test.jsonl")) == ["aime24.jsonl", "test.jsonl"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> datasets.Dataset:
        calls.append((name, config, split))
        if name == "org/broken":
            raise ConnectionError("no route")
        return datasets.Dataset.from_list(ROWS)

    def split_names(name: str, config: str | None) -> list[str]:
        return {"org/tests": ["test"], "org/both": ["train", "test"]}.get(name, ["one", "two"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", split_names)
    return calls


@pytest.mark.parametrize(
    ("source", "splits", "call"),
    [
        ("org/both", ("train",), ("org/both", None, "train")),
        ("org/both", ("test", "validation"), ("org/both", None, "test")),
        ("org/tests", ("train",), ("org/tests", None, "test")),
        ("org/some:part", ("two",), ("org/some", "part", "two")),
        ("org/some:part:third", ("two",), ("org/some", "part", "third")),
        ("org/some::third", ("two",), ("org/some", None, "third")),
    ],
)
def test_hub_ids(
    hub: list[tuple[object, ...]], source: str, splits: tuple[str, ...], call: tuple[object, ...]
) -> None:
    assert list(read_rows(source, splits=splits)) == ROWS
    assert hub == [call]


def test_hub_errors(hub: list[tuple[object, ...]]) -> None:
    with pytest.raises(DataError, match=r"org/some:part: it has the splits one, two\. hint: name one"):
        list(read_rows("org/some:part"))
    with pytest.raises(DataError, match="org/broken::test: cannot load the hub data set: no route"):
        list(read_rows("org/broken::test"))


def test_the_datasets_library_reads_a_local_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real library, with configurations and splits, on a repository that is a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    repository = folder(tmp_path / "org" / "name", "first/test.jsonl", "second/test.jsonl")
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: first\n  data_files: [{split: test, path: first/test.jsonl}]\n"
        "- config_name: second\n  data_files: [{split: test, path: second/test.jsonl}]\n---\n"
    )
    from trainer.data.readers import _hub_rows

    rows = _hub_rows("org/name:second", "./org/name", "second", None, ("train",))
    assert [row["file"] for row in rows] == ["second/test.jsonl"]
    with pytest.raises(DataError, match="Config name is missing"):
        list(_hub_rows("org/name", "./org/name", None, None, ("train",)))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/b/aime24.parquet", "aime24"),
        ("set.v2.jsonl.gz", "set.v2"),
        ("HuggingFaceH4/MATH-500", "MATH-500"),
        ("lukaemon/bbh:date_understanding:test", "bbh-date_understanding"),
        ("org/name::test", "name"),
    ],
)
def test_names(source: str, name: str) -> None:
    assert source_name(source) == name
