"""Number of source files that one training step crosses.

A file under ``service/`` or ``trainer/`` counts if one of its functions is called, in any thread, between the
start of an optimiser step and its log entry: weight push, rollout, filter, advantage, loss, update.
Not counted are ``service/engines``, ``service/sandbox`` and ``trainer/rewards``, which are exchangeable parts
behind one interface each, checkpoints, which are not written in every step, and the callbacks that report on
a step after it.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tests.support.toy_task import toy_sandbox
from tests.trainer.training.test_run import config
from trainer.training.run import train
from trainer.training.trainer import IHGRPOTrainer

ROOT = Path(__file__).parents[3]
MAX_FILES = 20
REPORTING = tuple(
    f"trainer/training/{name}.py" for name in ("live_view", "progress", "reporters", "run_info")
)
NOT_COUNTED = ("service/engines/", "service/sandbox/", "trainer/rewards/", *REPORTING)


class FileRecorder(TrainerCallback):
    """Records the files in which functions are called during the second step."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._recording = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._recording = state.global_step == 1

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._recording = False

    def profile(self, frame: FrameType, event: str, arg: object) -> None:
        # Module bodies run on import, not as part of the step.
        if self._recording and event == "call" and frame.f_code.co_name != "<module>":
            self.files.add(frame.f_code.co_filename)

    @contextmanager
    def profiling(self) -> Iterator[None]:
        threading.setprofile(self.profile)
        sys.setprofile(self.profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]


def test_training_step_crosses_few_files(tmp_path: Path, toy_checkpoint: Path) -> None:
    recorder = FileRecorder()

    class RecordedTrainer(IHGRPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(recorder)

    settings = config(tmp_path / "run", toy_checkpoint, steps=2, save_every=2)
    with recorder.profiling():
        train(settings, Console(file=io.StringIO()), sandbox=toy_sandbox(), trainer_class=RecordedTrainer)
    ours = (Path(file) for file in recorder.files if file.startswith(str(ROOT)))
    names = {path.relative_to(ROOT).as_posix() for path in ours}
    counted = sorted(
        name
        for name in names
        if name.startswith(("service/", "trainer/")) and not name.startswith(NOT_COUNTED)
    )
    assert {"trainer/training/rollouts.py", "trainer/training/loss.py", "service/episode/runner.py"} <= set(
        counted
    )
    assert len(counted) <= MAX_FILES, "\n".join(counted)
