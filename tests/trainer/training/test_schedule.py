from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.training.config import TrainConfig
from trainer.training.schedule import apply_current_rates, make_scheduler, rate_factor

SCHEDULES = ["constant_with_warmup", "linear", "cosine"]


def config(schedule: str, *, steps: int, warmup: int = 0) -> TrainConfig:
    values = {"model": "m", "data": ["d"], "run_dir": "r", "steps": steps, "lr_schedule": schedule}
    return TrainConfig.model_validate({**values, "warmup_steps": warmup, "learning_rate": 0.1})


def factors(schedule: str, *, steps: int, warmup: int = 0) -> list[float]:
    settings = config(schedule, steps=steps, warmup=warmup)
    return [rate_factor(settings, step) for step in range(steps)]


def test_known_schedules() -> None:
    assert factors("constant", steps=3) == [1, 1, 1]
    assert factors("constant_with_warmup", steps=3, warmup=1) == [0.5, 1, 1]
    assert factors("linear", steps=4) == [1, 0.75, 0.5, 0.25]
    assert factors("linear", steps=5, warmup=1) == [0.5, 1, 0.75, 0.5, 0.25]
    assert factors("cosine", steps=2) == pytest.approx([1, 0.5])


@given(schedule=st.sampled_from(SCHEDULES), steps=st.integers(1, 50), warmup=st.integers(0, 60))
def test_no_step_has_rate_0_and_rate_rises_then_falls(schedule: str, steps: int, warmup: int) -> None:
    found = factors(schedule, steps=steps, warmup=warmup)
    assert all(0 < factor <= 1 for factor in found)
    top = min(warmup, steps - 1)
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)


def optimizer_at(rate: float = 0.1) -> torch.optim.SGD:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (rate, 2 * rate)]
    return torch.optim.SGD(groups)


def test_groups_keep_their_own_base_rates() -> None:
    optimizer = optimizer_at()
    make_scheduler(config("linear", steps=4, warmup=1), optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.1])


def test_loaded_scheduler_follows_new_number_of_steps() -> None:
    optimizer = optimizer_at()
    scheduler = make_scheduler(config("linear", steps=2), optimizer)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]

    resumed = optimizer_at()
    longer = make_scheduler(config("linear", steps=4), resumed)
    resumed.load_state_dict(optimizer.state_dict())
    longer.load_state_dict(scheduler.state_dict())
    apply_current_rates(longer, resumed.param_groups)
    assert [group["lr"] for group in resumed.param_groups] == pytest.approx([0.05, 0.1])
    assert longer.get_last_lr() == pytest.approx([0.05, 0.1])
    resumed.step()
    longer.step()
    assert math.isclose(resumed.param_groups[0]["lr"], 0.025)
