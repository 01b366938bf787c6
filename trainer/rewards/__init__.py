"""Rewards: whether a response's boxed answer means the same as the gold answer.

:func:`score_answers` judges a batch from a script or a notebook; :class:`RewardScorer` is its asynchronous
form. Importing this package does not import math-verify, which runs in processes of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from trainer.rewards.gold_answers import gold_problem
from trainer.rewards.scorer import Reason, Reward, RewardError, RewardScorer

__all__ = ["Reason", "Reward", "RewardError", "RewardScorer", "gold_problem", "score_answers"]

_PAIRS_PER_WORKER = 50
"""A worker takes seconds to start, so a small batch gets only one."""


def score_answers(
    pairs: Sequence[tuple[str, str]], *, workers: int | None = None, deadline_s: float = 5.0
) -> list[float]:
    r"""Judge responses against gold answers: 1.0 for a correct one, else 0.0, in the order of ``pairs``.

    Starts worker processes and ends them before it returns, so one call with many pairs is faster than many
    calls. Also works where an event loop runs, as in a notebook; it blocks that loop.

    Args:
        pairs: gold answer (LaTeX, without a box) and response, whose last ``\boxed{...}`` counts.
        workers: processes. Default: one for 50 pairs, up to the number of cores.
        deadline_s: CPU seconds for one answer.

    Raises:
        RewardError: a worker could not be started or kept dying.
        ValueError: ``deadline_s`` is not above 0.
    """
    count = workers or max(1, min(os.cpu_count() or 1, len(pairs) // _PAIRS_PER_WORKER))

    async def score_all() -> list[float]:
        async with RewardScorer(workers=count, deadline_s=deadline_s) as scorer:
            rewards = await asyncio.gather(*(scorer.score(response, gold) for gold, response in pairs))
        return [reward.value for reward in rewards]

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(score_all())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, score_all()).result()
