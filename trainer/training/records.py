"""Rollouts on disk: a parquet file a rollout, a row a sample."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.deferral.episode import Outcome
from service.episode.events import ExecutedTool, InvokedBlock
from trainer.data.problems import DataError, Problem
from trainer.training.checkpoints import write_atomically
from trainer.training.episodes import Sample

SCHEMA = pa.schema(
    [
        ("rollout", pa.int64()),
        ("problem_id", pa.string()),
        ("question", pa.string()),
        ("gold", pa.string()),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("outcome", pa.string()),
        ("reward", pa.float64()),  # null where the sample could not be judged
        ("reason", pa.string()),
        ("advantage", pa.float64()),  # null where the sample is not trained on
        ("executed", pa.int32()),
        ("executed_by_model", pa.int32()),
        ("delayed", pa.int32()),
        ("tools", pa.string()),  # JSON: the flushes, as service.episode.events.ExecutedTool
        ("began_at", pa.float64()),  # Unix time, as the times of the flushes
        ("seconds", pa.float64()),
        ("seed", pa.int64()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("ids", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.int8())),
        ("logprobs", pa.list_(pa.float32())),
        ("dropped_ends", pa.string()),  # JSON: [position in ids, token id, log-probability] each
    ]
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A sample, its problem and what came of it."""

    problem: Problem
    sample: Sample
    reward: float | None
    """None where it could not be judged: the sandbox or the judge failed."""
    reason: str
    advantage: float | None = None
    """None where it is not trained on."""


def write_rollout(path: Path, index: int, judged: Sequence[Judged]) -> None:
    """Write rollout number ``index``, whole or not at all."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([_record(index, item) for item in judged], SCHEMA)
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


@dataclass(frozen=True, slots=True)
class Record:
    """A row of a saved rollout, as far as people look at it."""

    problem_id: str
    question: str
    gold: str
    text: str
    outcome: Outcome
    reward: float | None
    reason: str
    advantage: float | None
    tools: tuple[ExecutedTool, ...]
    began_at: float
    """Unix time."""
    seconds: float


def read_rollout(path: Path) -> list[Record]:
    """The rows of a file that `write_rollout` wrote.

    Raises:
        DataError: it is no such file.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file: name one, such as RUN_DIR/rollouts/rollout-000000.parquet")
    names = [field.name for field in fields(Record)]
    try:
        rows = pq.read_table(path, columns=names).to_pylist()
        return [_read(row) for row in rows]
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a saved rollout: {str(error).splitlines()[0]}") from None


def _read(row: dict[str, Any]) -> Record:
    tools = tuple(
        ExecutedTool(
            **{
                **tool,
                "blocks": tuple(InvokedBlock(**block) for block in tool["blocks"]),
                "runs": tuple((start, end) for start, end in tool["runs"]),
            }
        )
        for tool in json.loads(row["tools"])
    )
    return Record(**{**row, "tools": tools, "outcome": Outcome(row["outcome"])})


def _record(index: int, item: Judged) -> dict[str, object]:
    sample = item.sample
    return {
        "rollout": index,
        "problem_id": item.problem.id,
        "question": item.problem.question,
        "gold": item.problem.answer,
        "text": sample.text,
        "answer": sample.answer,
        "outcome": str(sample.outcome),
        "reward": item.reward,
        "reason": item.reason,
        "advantage": item.advantage,
        "executed": sample.executed,
        "executed_by_model": sample.executed_by_model,
        "delayed": sample.delayed,
        "tools": json.dumps([asdict(tool) for tool in sample.tools]),
        "began_at": sample.began_at,
        "seconds": sample.seconds,
        "seed": sample.seed,
        "prompt_ids": sample.prompt_ids,
        "ids": sample.ids,
        "mask": sample.mask,
        "logprobs": sample.logprobs,
        "dropped_ends": json.dumps(sample.dropped_ends),
    }
