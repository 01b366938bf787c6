"""Training runs as found on disk: recipe, state, curves and checkpoints. Only reads; needs no torch."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from trainer.training.run_files import LOCK
from trainer.training.run_info import INFO_FILE, Metrics, checkpoint_steps, read_history, read_info

RunState = Literal["running", "finished", "stopped"]

MAX_DEPTH: Final = 3
"""Levels of directories that `find_runs` searches."""


class RunsError(ValueError):
    """A directory is not a run or has no data; the message names it and gives a hint."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A training run on disk."""

    path: Path
    recipe_name: str | None
    """Name of the recipe's file; None for runs of version 0.1.0."""
    recipe: Mapping[str, Any]
    """The fields of `TrainConfig`, as JSON values."""
    state: RunState
    """``running`` if a process holds the run's lock. ``finished`` if the last step has a checkpoint."""
    history: Sequence[Metrics]
    """Metrics by step, in order; each with ``step``."""
    checkpoints: Sequence[int]
    """Steps of the checkpoints, in order."""
    best: int | None
    """Step of the best checkpoint."""
    started_at: str | None
    """ISO 8601 in UTC; None for runs of version 0.1.0."""

    @property
    def step(self) -> int:
        """The last step that was finished."""
        logged = int(self.history[-1]["step"]) if self.history else 0
        return max([logged, *self.checkpoints])

    @property
    def steps(self) -> int | None:
        """The step at which the run ends."""
        return self.recipe.get("steps")

    def latest(self, metric: str) -> float | None:
        """Return the last value of a metric, or None."""
        return next((record[metric] for record in reversed(self.history) if metric in record), None)

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Return the finite values of a metric as (step, value)."""
        return [
            (int(record["step"]), record[metric])
            for record in self.history
            if metric in record and math.isfinite(record[metric])
        ]

    def metrics(self) -> set[str]:
        """Return the names of all metrics."""
        return {name for record in self.history for name in record} - {"step", "epoch"}


def find_runs(directory: Path) -> list[TrainingRun]:
    """Return the runs in ``directory`` and up to three levels below it, ordered by path.

    Raises:
        RunsError: the directory does not exist.
    """
    if not directory.is_dir():
        problem = "is not a directory" if directory.exists() else "does not exist"
        raise RunsError(
            f"{directory} {problem}: start a run with `ih-grpo train`, or pass the folder of its runs"
        )
    return [read_run(path) for path in _run_directories(directory, MAX_DEPTH)]


def read_run(path: Path) -> TrainingRun:
    """Read a run directory.

    Raises:
        RunsError: it is not the directory of a run.
    """
    checkpoints = checkpoint_steps(path)
    info = read_info(path)
    recipe = info.recipe if info else _checkpoint_recipe(path, checkpoints)
    if recipe is None:
        raise RunsError(f"{path} is not a training run: it has no {INFO_FILE} and no checkpoint")
    return TrainingRun(
        path=path,
        recipe_name=info.recipe_name if info else None,
        recipe=recipe,
        state=_state(path, checkpoints, recipe),
        history=read_history(path),
        checkpoints=checkpoints,
        best=_linked_step(path / "checkpoints" / "best"),
        started_at=info.started_at if info else None,
    )


def differing_fields(runs: Sequence[TrainingRun]) -> dict[str, list[Any]]:
    """Return the recipe fields that differ, with the value of each run."""
    names = dict.fromkeys(name for run in runs for name in run.recipe)
    values = {name: [run.recipe.get(name) for run in runs] for name in names if name != "run_dir"}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def display_names(runs: Sequence[TrainingRun]) -> list[str]:
    """Return the names of the directories, or their paths if names repeat."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _run_directories(directory: Path, depth: int) -> list[Path]:
    if (directory / INFO_FILE).is_file() or _checkpoint_recipe(directory, checkpoint_steps(directory)):
        return [directory]
    if depth == 0:
        return []
    below = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [run for path in below for run in _run_directories(path, depth - 1)]


def _checkpoint_recipe(path: Path, checkpoints: Sequence[int]) -> Mapping[str, Any] | None:
    """Return the recipe of a run without ``run.json``, from its last checkpoint."""
    if not checkpoints:
        return None
    state = path / "checkpoints" / f"checkpoint-{checkpoints[-1]}" / "run_state.json"
    try:
        config: Mapping[str, Any] = json.loads(state.read_text(encoding="utf-8"))["config"]
        return config if "method" in config else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _state(path: Path, checkpoints: Sequence[int], recipe: Mapping[str, Any]) -> RunState:
    if _is_locked(path / LOCK):
        return "running"
    return "finished" if checkpoints and checkpoints[-1] >= recipe.get("steps", math.inf) else "stopped"


def _is_locked(path: Path) -> bool:
    """Return whether a process holds the lock. Holds a shared lock itself for a moment."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # no lock file, or a file system without locks
    return False


def _linked_step(link: Path) -> int | None:
    name = link.resolve().name if link.exists() else ""
    return int(name.removeprefix("checkpoint-")) if name.startswith("checkpoint-") else None
