"""Rewards: the shipped ones, your own, and the comparison of mathematical answers.

:func:`score_answers` scores a batch of answers from a script or a notebook; :class:`RewardScorer` is the
asynchronous form. :class:`RewardFunction` is the interface of rewards in recipes. Importing this package does
not import math-verify, which runs in separate processes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from trainer.rewards.protocol import FinishedEpisode, RewardFunction
from trainer.rewards.scorer import Reason, Reward, RewardError, RewardScorer, gold_problem

__all__ = [
    "FinishedEpisode",
    "Reason",
    "Reward",
    "RewardError",
    "RewardFunction",
    "RewardScorer",
    "gold_problem",
    "score_answers",
]

_PAIRS_PER_WORKER = 50
"""Starting a worker takes seconds, so a small batch uses only one."""


def score_answers(
    pairs: Sequence[tuple[str, str]], *, workers: int | None = None, deadline_s: float = 5.0
) -> list[float]:
    r"""Score responses against gold answers: 1.0 if correct, else 0.0, in the order of ``pairs``.

    Starts worker processes and stops them before it returns, so one call with many pairs is faster than many
    calls. Also works inside a running event loop, as in a notebook, but blocks that loop.

    Args:
        pairs: gold answer (LaTeX, without a box) and response, whose last ``\boxed{...}`` is compared.
        workers: number of processes. Default: one per 50 pairs, up to the number of cores.
        deadline_s: CPU seconds for one answer.

    Raises:
        RewardError: a worker failed to start or died repeatedly.
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
