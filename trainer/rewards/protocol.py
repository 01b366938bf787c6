"""The interface of reward functions: the episode they see and the verdict they return.

A reward function is an asynchronous callable::

    async def short(episode: FinishedEpisode, row: Mapping[str, Any]) -> float:
        return -1.0 if episode.tokens > 2000 else 0.0

A recipe names it by import path; see `trainer.rewards.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from service.deferral.answer import last_boxed
from service.deferral.episode import Outcome
from service.episode.events import ExecutedTool
from trainer.rewards.scorer import Reward


@dataclass(frozen=True, slots=True)
class FinishedEpisode:
    """One episode as reward functions see it. Fields that a server does not report are None."""

    text: str
    """The response: what the model wrote and the tool results that it read."""
    outcome: Outcome | None = None
    """Why the episode ended."""
    is_void: bool = False
    """Whether training masks the episode: it was cut by a limit, or its last turn has neither an answer nor
    a flush. Always False in evaluation, which grades the text as it is."""
    tokens: int = 0
    """Tokens that the model sampled."""
    seconds: float = 0.0
    """Wall-clock time of the episode."""
    tools: tuple[ExecutedTool, ...] | None = None
    """The flushes in order, with their blocks, status, output and times."""
    tool_wait_seconds: float | None = None
    """Time that the model waited for running code, summed over all flushes. Waiting for a container is not
    included."""
    pending_blocks: int | None = None
    """Blocks that were closed and never ran."""
    open_fence: bool | None = None
    """Whether the response ends inside an unclosed Python block."""

    @property
    def answer(self) -> str | None:
        r"""Content of the last ``\boxed{...}``, or None."""
        return last_boxed(self.text)


class RewardFunction(Protocol):
    """Scores one finished episode. Called concurrently in one event loop, so it must not block.

    Further members that a reward function may have, as attributes of the callable:

    - ``__aenter__`` and ``__aexit__``: the function is entered before the first episode and left at the end
      of the run, for HTTP clients or worker processes.
    - ``answer_of(episode, row) -> str | None``: the answer that counts as this episode's vote in maj@k.
      Default: the last boxed answer.
    - ``value_range``: the smallest and the largest value, as ``(0.0, 1.0)``. Used to reject filters that no
      group could pass.
    """

    async def __call__(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> float | Reward | None:
        """Return the reward, or None for no verdict.

        Args:
            episode: the finished episode.
            row: the row of the data set, all columns as they were read, and ``id``, ``question`` and
                ``answer`` as the trainer uses them.

        Returns:
            A finite number, a `Reward` with a reason, or None if the episode cannot be judged. An episode
            without a verdict is not trained on, and counts in no mean.
        """
        ...
