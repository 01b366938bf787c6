"""One process of a training run on the toy task, for torchrun or accelerate; the first one saves
gradients."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from rich.console import Console
from torch import nn
from torch.distributed.tensor import DTensor

from tests.support.toy_task import toy_sandbox
from trainer.training.config import TrainConfig
from trainer.training.run import train
from trainer.training.trainer import IHGRPOTrainer


class Watched(IHGRPOTrainer):
    """A trainer that saves the full gradients of each step to ``gradients-STEP.pt`` in the run's
    directory."""

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        gradients = {
            name.removeprefix("module."): _whole(weight.grad)
            for name, weight in model.named_parameters()
            if weight.grad is not None
        }
        if self.accelerator.is_main_process:
            torch.save(gradients, self.config.run_dir / f"gradients-{self.state.global_step}.pt")
        return norm


def _whole(gradient: Any) -> torch.Tensor:
    whole: torch.Tensor = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return whole.detach().clone()


def allow_fsdp_on_the_cpu() -> None:
    """FSDP2 works with gloo, but accelerate always uses plain data parallelism on the CPU."""
    torch.distributed.init_process_group("gloo")

    def set_device(state: Any) -> None:
        state.device = torch.device("cpu")

    PartialState.set_device = set_device
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        allow_fsdp_on_the_cpu()
    settings = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text())
    train(settings, Console(stderr=True), sandbox=toy_sandbox(), trainer_class=Watched)
