"""Rows of a data source: parquet and JSON files, compressed or not, folders of them, and hub data sets.

``org/name:config:split`` names a configuration and a split of a data set on the Hugging Face hub; both are
optional, and ``org/name::split`` leaves out the configuration. ``folder:split`` names a split of a folder.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq


class DataError(Exception):
    """A source can't be read or a row does not fit; the message names the source, the row and the field."""


_FORMATS: Final = (".parquet", ".jsonl", ".ndjson", ".json")
_LISTED: Final = "a .parquet, .jsonl or .json file (also as .json.gz or .jsonl.gz)"
_HUB_ID: Final = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[^:/]*))?(?::(?P<split>[^:/]+))?")
_SPLIT_NAMES: Final = ("train", "test", "validation", "valid", "dev")
_SPLIT_FILE: Final = re.compile(r"(?P<split>[A-Za-z]+)(?:[-_.]|$)")


def read_rows(source: str | Path, *, splits: Sequence[str] = ("train",)) -> Iterator[Any]:
    """Yield the rows of a source in their order.

    Args:
        source: a file, a folder, or a hub id ``org/name[:config[:split]]``.
        splits: splits to look for, best first, in a folder with files such as ``test.jsonl`` or
            ``test-00000-of-00001.parquet``, and in a hub data set without a split in its id. A source with a
            single split of another name is read too.

    Raises:
        DataError: the source does not exist, cannot be read, or has several splits and none of ``splits``.
    """
    path = Path(source)
    folder, _, split = str(source).rpartition(":")
    if not path.exists() and split and Path(folder or source).is_dir():
        path, splits = Path(folder), (split,)
    if path.is_dir():
        for file in _folder_files(path, splits):
            yield from _file_rows(file)
    elif path.is_file() or isinstance(source, Path) or _format(path) is not None:
        yield from _file_rows(path)
    elif match := _HUB_ID.fullmatch(source):
        yield from _hub_rows(source, match["name"], match["config"] or None, match["split"], splits)
    else:
        raise DataError(
            f"{source}: must be {_LISTED}, a folder of them, or a hub id such as org/name:config:split"
        )


def source_name(source: str | Path) -> str:
    """Return a short name: of a file or folder without suffixes, or of a hub id with its configuration."""
    path = Path(source)
    match = _HUB_ID.fullmatch(str(source))
    if path.exists() or _format(path) is not None or match is None:
        name = path.name
        while (suffix := Path(name).suffix) in (".gz", *_FORMATS):
            name = name.removesuffix(suffix)
        return name
    return "-".join(filter(None, (match["name"].partition("/")[2], match["config"])))


def _format(path: Path) -> str | None:
    suffixes = path.suffixes
    if suffixes and suffixes[-1] == ".gz":
        suffixes = suffixes[:-1]
        if suffixes and suffixes[-1] == ".parquet":
            return None  # parquet is compressed inside
    return suffixes[-1] if suffixes and suffixes[-1] in _FORMATS else None


def _folder_files(folder: Path, splits: Sequence[str]) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and _format(file) is not None
        and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    )
    if not files:
        raise DataError(f"{folder}: the folder has no {_LISTED.removeprefix('a ')}")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        match = _SPLIT_FILE.match(file.name)
        by_split.setdefault(match["split"].lower() if match else "", []).append(file)
    if not by_split.keys() <= set(_SPLIT_NAMES):
        return files  # the names of the files are not splits
    return by_split[_choose_split(str(folder), list(by_split), splits)]


def _choose_split(source: str, available: Sequence[str], wanted: Sequence[str]) -> str:
    for split in wanted:
        if split in available:
            return split
    if len(available) == 1:
        return available[0]
    raise DataError(
        f"{source}: it has the splits {', '.join(available)}. hint: name one, as in org/name:config:split or "
        f"folder:split"
    )


def _file_rows(path: Path) -> Iterator[Any]:
    kind = _format(path)
    if kind is None:
        raise DataError(f"{path}: must be {_LISTED}")
    try:
        if kind == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1000):
                    yield from batch.to_pylist()
            return
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield from _json_rows(path, stream.read()) if kind == ".json" else _json_lines(path, stream)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: the file does not exist") from None
    except (OSError, EOFError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path}: {error}") from error


def _json_lines(path: Path, lines: Iterable[bytes]) -> Iterator[Any]:
    number = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, row {number}: not UTF-8: {error}") from error
        except ValueError as error:
            raise DataError(f"{path}, row {number}: not JSON: {error}") from error
        yield row
        number += 1


def _json_rows(path: Path, content: bytes) -> Iterator[Any]:
    """Rows of a JSON file: a list of rows, an object that holds one, or JSON lines under the wrong name."""
    try:
        value = json.loads(content)
    except ValueError as error:
        lines = content.splitlines()
        if len(lines) > 1 and lines[0].strip().startswith(b"{") and lines[0].strip().endswith(b"}"):
            yield from _json_lines(path, lines)
            return
        raise DataError(f"{path}: not JSON: {error}") from error
    if isinstance(value, Mapping):
        lists = [name for name, found in value.items() if isinstance(found, list)]
        if len(lists) != 1:
            raise DataError(f"{path}: must be a list of rows, or an object with one list, such as data")
        value = value[lists[0]]
    if not isinstance(value, list):
        raise DataError(f"{path}: must be a list of rows, got {type(value).__name__}")
    yield from value


def _hub_splits(name: str, config: str | None) -> list[str]:
    import datasets

    names: list[str] = datasets.get_dataset_split_names(name, config)
    return names


def _hub_rows(
    source: str, name: str, config: str | None, split: str | None, splits: Sequence[str]
) -> Iterator[Any]:
    import datasets  # takes seconds to import

    try:
        if split is None:
            split = _choose_split(source, _hub_splits(name, config), splits)
        yield from datasets.load_dataset(name, config, split=split)
    except DataError:
        raise
    except Exception as error:  # hub, network, cache and parsing each raise their own
        raise DataError(f"{source}: cannot load the hub data set: {error}") from error
