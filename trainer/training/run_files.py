"""Files of a run directory: its lock, atomic writes and saved rollouts (one parquet file per rollout)."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from service.deferral.episode import Outcome
from service.episode.events import CodeToolCall, ExecutedTool, InvokedBlock
from trainer.data.problems import DataError, Problem
from trainer.rewards.registry import RewardPart
from trainer.training.episodes import Sample

LOCK: Final = ".lock"


class DirectoryError(Exception):
    """A directory is not writable or in use; the message names it and gives a hint."""


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of ``directory``, so that only one process writes to it. Creates the directory.

    The operating system releases the lock when the process ends, even after a crash.

    Raises:
        DirectoryError: another process holds the lock, or the directory is not writable.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("w")
    except OSError as error:
        raise DirectoryError(
            f"{directory} is not writable ({error.strerror}): choose another directory"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DirectoryError(
                f"another process is using {directory}: wait for it, or choose another directory"
            ) from None
        except OSError:
            pass  # a file system without locks, as some network file systems: continue without one
        yield


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all. Creates the parent directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    sync_to_disk(temporary)
    temporary.replace(path)
    sync_to_disk(path.parent)


def read_complete_lines(path: Path, *, truncate: bool = False) -> list[bytes]:
    """Return the complete lines of a file, without an unfinished last one. Empty if the file does not exist.

    A process that was killed, or that is writing now, may leave a part of a line.

    Args:
        path: a file that processes append lines to.
        truncate: also remove that part from the file, so that the next line can be appended.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if truncate and end < len(data):
        os.truncate(path, end)
    return data[:end].splitlines()


def sync_to_disk(path: Path) -> None:
    """Call fsync on a file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


SCHEMA = pa.schema(
    [
        ("rollout", pa.int64()),
        ("problem_id", pa.string()),
        ("question", pa.string()),
        ("gold", pa.string()),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("outcome", pa.string()),
        ("reward", pa.float64()),  # null if the sample could not be scored
        ("reason", pa.string()),
        ("rewards", pa.string()),  # JSON: value and reason by the name of the reward
        ("advantage", pa.float64()),  # null if the sample is not trained on
        ("executed", pa.int32()),
        ("executed_by_model", pa.int32()),
        ("delayed", pa.int32()),
        ("tools", pa.string()),  # JSON: the flushes, as service.episode.events.ExecutedTool
        ("began_at", pa.float64()),  # Unix time, on the same clock as the flushes
        ("seconds", pa.float64()),
        ("seed", pa.int64()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("ids", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.int8())),
        ("logprobs", pa.list_(pa.float32())),
        ("versions", pa.list_(pa.int32())),  # of the weights that sampled each token; 0 for observations
        ("dropped_ends", pa.string()),  # JSON: a list of [position in ids, token id, log-probability]
    ]
)


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """A sample with its problem, reward and advantage."""

    problem: Problem
    sample: Sample
    reward: float | None
    """None if the sample could not be scored: the sandbox or the reward worker failed."""
    reason: str
    """Reason of the first reward; of ``math``, see ``trainer.rewards.Reason``, and the outcome of void
    samples."""
    advantage: float | None = None
    """None if the sample is not trained on."""
    parts: Mapping[str, RewardPart] = field(default_factory=dict)
    """Verdicts by the name of the reward."""


def write_rollout(path: Path, index: int, scored: Sequence[ScoredSample]) -> None:
    """Write rollout number ``index`` atomically."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([_to_row(index, item) for item in scored], SCHEMA)
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """A row of a saved rollout, without token ids and log-probabilities."""

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
    rewards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """``value`` and ``reason`` by the name of the reward; empty in older files."""


def read_rollout(path: Path) -> list[RolloutRecord]:
    """Read the rows of a file written by `write_rollout`.

    Raises:
        DataError: the file is missing or is not a saved rollout.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file: pass one such as RUN_DIR/rollouts/rollout-000000.parquet")
    names = [field.name for field in fields(RolloutRecord)]
    try:
        if "rewards" not in pq.read_schema(path).names:  # written before there were several rewards
            names.remove("rewards")
        rows = pq.read_table(path, columns=names).to_pylist()
        return [_from_row(row) for row in rows]
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a saved rollout: {str(error).splitlines()[0]}") from None


def _from_row(row: dict[str, Any]) -> RolloutRecord:
    tools = tuple(
        ExecutedTool(
            **{
                **tool,
                "blocks": tuple(InvokedBlock(**block) for block in tool["blocks"]),
                "runs": tuple((start, end) for start, end in tool["runs"]),
                "pauses": tuple((start, end) for start, end in tool.get("pauses", ())),
                "calls": tuple(CodeToolCall(**call) for call in tool.get("calls", ())),
            }
        )
        for tool in json.loads(row["tools"])
    )
    rewards = json.loads(row.get("rewards") or "{}")
    return RolloutRecord(**{**row, "tools": tools, "outcome": Outcome(row["outcome"]), "rewards": rewards})


def _to_row(index: int, item: ScoredSample) -> dict[str, object]:
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
        "rewards": json.dumps(
            {name: {"value": part.value, "reason": part.reason} for name, part in item.parts.items()}
        ),
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
        "versions": sample.versions,
        "dropped_ends": json.dumps(sample.dropped_ends),
    }
