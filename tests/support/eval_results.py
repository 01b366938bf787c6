"""Results of an evaluation, for tests."""

from __future__ import annotations

from trainer.evaluation.results import EvalResult


def eval_result(problem: str, sample: int, reward: float, **fields: object) -> EvalResult:
    """Return a result for ``problem`` of benchmark ``b`` without tool usage, with ``fields`` changed."""
    values: dict[str, object] = {
        "benchmark": "b", "problem_id": problem, "question": "1 + 1?", "gold": "2",
        "sample": sample, "reward": reward, "reason": "correct",
        "finish": "stop", "tokens": 100, "seconds": 1.0, "text": "",
    }  # fmt: skip
    return EvalResult.model_validate({**values, **fields})
