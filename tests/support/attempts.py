"""Attempts as an evaluation makes them."""

from __future__ import annotations

from trainer.evaluation.results import Attempt


def attempt(problem: str, sample: int, reward: float, **fields: object) -> Attempt:
    """An attempt at problem ``problem`` of benchmark ``b`` that used no tool; ``fields`` change it."""
    values: dict[str, object] = {
        "benchmark": "b", "problem_id": problem, "question": "1 + 1?", "gold": "2",
        "sample": sample, "reward": reward, "reason": "correct",
        "finish": "stop", "tokens": 100, "seconds": 1.0, "text": "",
    }  # fmt: skip
    return Attempt.model_validate({**values, **fields})
