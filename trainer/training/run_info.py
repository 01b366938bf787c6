"""Description of a run in its directory: ``run.json`` (recipe, processes) and ``metrics.jsonl`` (curves).

Cheap to import: no torch.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from trainer.training.config import TrainConfig
from trainer.training.run_files import write_atomically

INFO_FILE: Final = "run.json"
METRICS_FILE: Final = "metrics.jsonl"

EVAL_ACCURACY: Final = "eval_accuracy"
"""Metric of validation that the best checkpoint is chosen by."""

_OLD_NAMES: Final = {"groups/thin": "groups/too_few_valid", "groups/no_signal": "groups/zero_std"}
"""Metrics of version 0.1.0 and earlier, and their names today."""

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The content of ``run.json``, written whenever the run starts or resumes."""

    recipe_name: str | None
    """Name of the recipe's file without suffix; None if the run was started from Python."""
    recipe: Mapping[str, Any]
    """The fields of `TrainConfig`."""
    processes: int
    """Training processes."""
    started_at: str
    """First start of the run, ISO 8601 in UTC."""
    wandb_id: str
    """Id of the run on Weights & Biases; the same each time that the run resumes."""
    version: str
    """Version of this package at the last start."""


def write_info(config: TrainConfig, processes: int, recipe_name: str | None = None) -> RunInfo:
    """Write ``run.json``, keeping the start time and the id of an existing one."""
    before = read_info(config.run_dir)
    info = RunInfo(
        recipe_name=recipe_name,
        recipe=config.model_dump(mode="json"),
        processes=processes,
        started_at=before.started_at if before else datetime.now(UTC).isoformat(timespec="seconds"),
        wandb_id=before.wandb_id if before else secrets.token_hex(4),
        version=version("ih-grpo"),
    )
    values = {name: getattr(info, name) for name in info.__slots__}
    write_atomically(config.run_dir / INFO_FILE, (json.dumps(values, indent=2) + "\n").encode())
    return info


def read_info(run_dir: Path) -> RunInfo | None:
    """Return the run's description, or None if there is no readable one."""
    try:
        values = json.loads((run_dir / INFO_FILE).read_text(encoding="utf-8"))
        return RunInfo(**{name: values[name] for name in RunInfo.__slots__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


class MetricsFile:
    """The curves of a run: one JSON object a line, with ``step`` and the metrics logged at that step."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE

    def truncate(self, step: int) -> None:
        """Remove the records after ``step``: the run resumes there."""
        kept = [record for record in self.read() if record["step"] <= step]
        write_atomically(self._path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a record. Values that are not numbers are left out."""
        record = {"step": step, **_numbers(metrics)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[Metrics]:
        """Return all complete records, in order. Empty if there is no file."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        records = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a killed process may leave half a line
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(_renamed(record))
        return records


def read_history(run_dir: Path) -> list[Metrics]:
    """Return the metrics of a run by step: from ``metrics.jsonl``, else from the last checkpoint.

    Each item has ``step`` and everything logged at that step, in increasing order.
    """
    records = MetricsFile(run_dir).read() or _checkpoint_history(run_dir)
    steps: dict[int, Metrics] = {}
    for record in records:
        steps.setdefault(int(record["step"]), {}).update(record)
    return [steps[step] for step in sorted(steps)]


def checkpoint_steps(run_dir: Path) -> list[int]:
    """Return the steps of the run's checkpoints, in order. Does not verify them."""
    names = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in (run_dir / "checkpoints").glob("*"))
    return sorted(int(match[1]) for match in names if match)


def log_history(checkpoint: Path) -> list[Metrics]:
    """Return the records that transformers' Trainer saved in a checkpoint; empty if unreadable."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return [_renamed({"step": int(item["step"]), **_numbers(item)}) for item in state["log_history"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _checkpoint_history(run_dir: Path) -> list[Metrics]:
    steps = checkpoint_steps(run_dir)
    return log_history(run_dir / "checkpoints" / f"checkpoint-{steps[-1]}") if steps else []


def _numbers(values: Mapping[str, Any]) -> Metrics:
    return {name: v for name, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _renamed(record: Metrics) -> Metrics:
    return {_OLD_NAMES.get(name, name): value for name, value in record.items()}
