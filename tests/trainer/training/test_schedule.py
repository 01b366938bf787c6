from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from trainer.training.config import TrainConfig
from trainer.training.schedule import make_scheduler, rate_factor


def config(schedule: str, steps: int, warmup: int = 0) -> TrainConfig:
    values = {"model": "m", "data": ["d"], "run_dir": "r", "lr_schedule": schedule, "steps": steps}
    return TrainConfig.model_validate({**values, "warmup_steps": warmup})


@pytest.mark.parametrize(
    ("schedule", "steps", "warmup", "factors"),
    [
        ("constant", 3, 0, [1, 1, 1]),
        ("constant_with_warmup", 4, 1, [0.5, 1, 1, 1]),
        ("constant_with_warmup", 4, 3, [0.25, 0.5, 0.75, 1]),
        ("linear", 4, 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 5, 1, [0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", 2, 0, [1, 0.5]),
    ],
)
def test_factors(schedule: str, steps: int, warmup: int, factors: list[float]) -> None:
    settings = config(schedule, steps, warmup)
    assert [rate_factor(settings, step) for step in range(steps)] == pytest.approx(factors)


@given(st.sampled_from(["constant_with_warmup", "linear", "cosine"]), st.integers(1, 50), st.integers(0, 60))
def test_every_step_has_a_rate(schedule: str, steps: int, warmup: int) -> None:
    settings = config(schedule, steps, warmup)
    factors = [rate_factor(settings, step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_without_warm_up_they_are_the_schedules_of_transformers(schedule: str) -> None:
    def rates(scheduler: torch.optim.lr_scheduler.LRScheduler) -> list[float]:
        found = []
        for _ in range(7):
            found += scheduler.get_last_lr()
            scheduler.optimizer.step()
            scheduler.step()
        return found

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    expected = get_scheduler(schedule, optimizer(), num_warmup_steps=0, num_training_steps=7)
    assert rates(make_scheduler(config(schedule, 7), optimizer())) == pytest.approx(rates(expected))


def test_a_saved_state_continues() -> None:
    settings = config("linear", 6, 2)

    def scheduler() -> torch.optim.lr_scheduler.LRScheduler:
        return make_scheduler(settings, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))

    first, second = scheduler(), scheduler()
    for _ in range(3):
        first.optimizer.step()
        first.step()
    second.load_state_dict(first.state_dict())
    for one in (first, second):
        one.optimizer.step()
        one.step()
    assert first.get_last_lr() == second.get_last_lr() == [pytest.approx(rate_factor(settings, 4))]
