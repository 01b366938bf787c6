"""Which samples are worth a gradient: the filters between rollout and loss (the paper's training set-up).

- A sample cut by the length limit is dropped: its reward says nothing about its content.
- A sample with a void turn (neither an answer nor a flush) stays in its group and counts as the failure that
  it is, so that the others are measured against it. But it is masked: no token of it is trained on.
- A group is dropped if fewer than ``min_valid`` of its samples can be trained on, or if rewards don't differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from trainer.training.advantage import group_advantages

GroupVerdict = Literal["kept", "thin", "no_signal"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the filters need to know of a finished episode."""

    reward: float
    over_long: bool = False
    """Cut by the token limit of a turn or of the episode."""
    void: bool = False
    """Its last turn ended with neither an answer nor a flush."""


@dataclass(frozen=True, slots=True)
class FilteredGroup:
    """The samples of a prompt that go on. Empty unless ``verdict`` is ``kept``."""

    verdict: GroupVerdict
    indices: tuple[int, ...] = ()
    """Positions in the group, in order: all but the over-long samples."""
    advantages: tuple[float, ...] = ()
    """One for each index."""
    masked: tuple[bool, ...] = ()
    """One for each index; true for void samples, whose loss mask is to be 0 throughout."""


@dataclass(slots=True)
class FilterCounts:
    """Running totals; give shares as ``(sum, count)`` pairs, so that they add up over steps and processes."""

    groups: dict[GroupVerdict, int] = field(default_factory=lambda: {"kept": 0, "thin": 0, "no_signal": 0})
    samples: int = 0
    over_long: int = 0
    void: int = 0

    def metrics(self) -> dict[str, tuple[int, int]]:
        """Name to (sum, count)."""
        groups = sum(self.groups.values())
        return {
            **{f"groups/{verdict}": (count, groups) for verdict, count in self.groups.items()},
            "samples/over_long": (self.over_long, self.samples),
            "samples/void": (self.void, self.samples),
        }


def filter_group(
    outcomes: Sequence[Outcome],
    counts: FilterCounts | None = None,
    *,
    min_valid: int = 4,
    min_std: float = 1e-3,
) -> FilteredGroup:
    """Apply the filters to the samples of one prompt and work out the advantages of those that stay.

    Args:
        outcomes: the group, in any order.
        counts: added to, if given.
        min_valid: least number of samples that are neither over-long nor void.
        min_std: least deviation (divisor n - 1) of the rewards that stay.
    """
    indices = tuple(i for i, outcome in enumerate(outcomes) if not outcome.over_long)
    masked = tuple(outcomes[i].void for i in indices)
    rewards = torch.tensor([outcomes[i].reward for i in indices], dtype=torch.float64)
    if masked.count(False) < max(min_valid, 1):
        group = FilteredGroup("thin")
    elif len(indices) < 2 or rewards.std().item() < min_std:
        group = FilteredGroup("no_signal")
    else:
        group = FilteredGroup("kept", indices, tuple(group_advantages(rewards).tolist()), masked)
    if counts is not None:
        counts.groups[group.verdict] += 1
        counts.samples += len(outcomes)
        counts.over_long += sum(o.over_long for o in outcomes)
        counts.void += sum(o.void for o in outcomes)
    return group
