"""Named sets of benchmarks: the paper's mathematical benchmarks and its other domains.

A benchmark of a suite is read from a file or folder of its name in a local folder if there is one, and from
the hub otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.data.readers import source_name

EVAL_SPLITS: Final = ("test", "validation", "train")
"""Splits for evaluation if a source does not name one, best first."""
_SUFFIXES: Final = ("", ".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Problems to evaluate on, and how they are graded."""

    name: str
    source: str
    """File, folder or hub id; see `trainer.data.readers.read_rows`."""
    reward: str | None = None
    """Reward that grades it, if the user does not choose one. Default: ``math``."""
    samples: int | None = None
    """Samples per problem, if the user does not choose a number."""


_PAPER: Final = (
    Benchmark("aime24", "math-ai/aime24::test", samples=32),
    Benchmark("aime25", "math-ai/aime25::test", samples=32),
    Benchmark("amc23", "math-ai/amc23::test", samples=32),
    Benchmark("hmmt25", "MathArena/hmmt_feb_2025::train", samples=32),
    Benchmark("math500", "HuggingFaceH4/MATH-500::test", samples=8),
    Benchmark("olympiad", "Hothan/OlympiadBench:OE_TO_maths_en_COMP:train", samples=8),
)
_OTHER_DOMAINS: Final = (
    Benchmark("logiqa", "hails/agieval-logiqa-en::test", "multiple_choice", 1),
    Benchmark("mmlu_pro", "TIGER-Lab/MMLU-Pro::test", "multiple_choice", 1),
    *(
        Benchmark(f"bbh_{task}", f"lukaemon/bbh:{task}:test", "multiple_choice", 1)
        for task in (
            "logical_deduction_seven_objects",
            "date_understanding",
            "tracking_shuffled_objects_seven_objects",
        )
    ),
)
SUITES: Final[Mapping[str, tuple[Benchmark, ...]]] = {
    "paper": _PAPER,
    "paper-other-domains": _OTHER_DOMAINS,
}
"""Benchmarks by the name of their suite."""


def suite(name: str, folder: Path | None = None) -> tuple[Benchmark, ...]:
    """Return the benchmarks of a suite.

    Args:
        name: a key of ``SUITES``.
        folder: where local copies are looked for, such as ``aime24.parquet`` or a folder ``aime24``.

    Raises:
        ValueError: unknown suite.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}. hint: known suites are {', '.join(SUITES)}")
    return tuple(
        Benchmark(item.name, _local(folder, item.name) or item.source, item.reward, item.samples)
        for item in SUITES[name]
    )


def parse_benchmark(text: str) -> Benchmark:
    """Return the benchmark of a command-line argument: a source, or ``name=source``."""
    name, equals, source = text.partition("=")
    if equals and name and source and "/" not in name:
        return Benchmark(name, source)
    return Benchmark(source_name(text), text)


def _local(folder: Path | None, name: str) -> str | None:
    if folder is None:
        return None
    found = (folder / f"{name}{suffix}" for suffix in _SUFFIXES)
    return next((str(path) for path in found if path.exists()), None)
