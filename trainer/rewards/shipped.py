"""The rewards that come with the package, by the names that recipes and ``ih-grpo eval --reward`` use."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Literal, Self

from service.deferral.scanner import BlockClosed, FenceScanner, MarkerSeen
from trainer.rewards.choice import find_choice, gold_choice, options_of
from trainer.rewards.protocol import FinishedEpisode, RewardFunction
from trainer.rewards.scorer import AnswerScorer, Reward, RewardScorer


class MathReward:
    r"""1.0 if the last ``\boxed{...}`` is equivalent to the gold answer, else 0.0. Reasons: see `Reason`.

    Args:
        workers: processes that compare answers. Default: the number of cores.
        deadline_s: CPU seconds for one answer.
        scorer: used instead of own processes.
    """

    value_range: ClassVar = (0.0, 1.0)

    def __init__(
        self, *, workers: int | None = None, deadline_s: float = 5.0, scorer: AnswerScorer | None = None
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._scorer: AnswerScorer = scorer or RewardScorer(workers=workers, deadline_s=deadline_s)

    async def __call__(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> Reward:
        """Raises RewardError: no worker could compare the answers."""
        if episode.is_void:
            return Reward(0.0, str(episode.outcome))
        return await self._scorer.score(episode.text, row["answer"])

    async def __aenter__(self) -> Self:
        await self._scorer.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._scorer.__aexit__(*error)


class MultipleChoiceReward:
    """1.0 if the response chooses the letter of the gold answer, else 0.0. Letters A to J.

    Reasons: ``correct``, ``incorrect``, ``no_answer``, and ``bad_gold`` if the gold answer names no option.
    """

    value_range: ClassVar = (0.0, 1.0)

    async def __call__(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> Reward:
        if episode.is_void:
            return Reward(0.0, str(episode.outcome))
        gold = gold_choice(row["answer"], options_of(row))
        if gold is None:
            return Reward(0.0, "bad_gold")
        answer = self.answer_of(episode, row)
        if answer is None:
            return Reward(0.0, "no_answer")
        return Reward(1.0, "correct") if answer == gold else Reward(0.0, "incorrect")

    def answer_of(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> str | None:
        """Return the letter that the response chooses."""
        return find_choice(episode.text, options_of(row))


class ExactMatchReward:
    """1.0 if the answer has the same text as the gold answer, else 0.0.

    Ignored differences: Unicode forms, upper and lower case, runs of spaces, LaTeX's text commands, dollar
    signs, and punctuation at both ends. Reasons: ``correct``, ``incorrect``, ``no_answer``.

    Args:
        source: ``boxed`` compares the last box, ``last_line`` the last line that is not empty.
        case_sensitive: keep upper and lower case apart.
    """

    value_range: ClassVar = (0.0, 1.0)

    def __init__(
        self, *, source: Literal["boxed", "last_line"] = "boxed", case_sensitive: bool = False
    ) -> None:
        if source not in ("boxed", "last_line"):
            raise ValueError(f"source must be 'boxed' or 'last_line', got {source!r}")
        self._source = source
        self._case_sensitive = case_sensitive

    async def __call__(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> Reward:
        if episode.is_void:
            return Reward(0.0, str(episode.outcome))
        answer = self.answer_of(episode, row)
        if answer is None:
            return Reward(0.0, "no_answer")
        return (
            Reward(1.0, "correct") if answer == self._normalise(row["answer"]) else Reward(0.0, "incorrect")
        )

    def answer_of(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> str | None:  # noqa: ARG002
        """Return the normalised answer."""
        if self._source == "boxed":
            answer = episode.answer
        else:
            answer = next((line for line in reversed(episode.text.splitlines()) if line.strip()), None)
        return None if answer is None else self._normalise(answer)

    def _normalise(self, text: str) -> str:
        text = re.sub(r"\\(?:text|textbf|textrm|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
        text = unicodedata.normalize("NFKC", text).replace("$", "")
        text = re.sub(r"\s+", " ", text).strip(" .,;:!?\"'`*")
        return text if self._case_sensitive else text.casefold()


class LengthReward:
    """A penalty for long responses: 0 up to ``soft_limit`` tokens, then linear to -1 at ``hard_limit``.

    The soft overlong punishment of DAPO (arXiv 2503.14476, equation 13).
    Reasons: ``short``, ``over_soft_limit``, ``over_hard_limit``.

    Args:
        soft_limit: sampled tokens without a penalty.
        hard_limit: tokens at and above which the penalty is -1.
    """

    value_range: ClassVar = (-1.0, 0.0)

    def __init__(self, *, soft_limit: int = 4096, hard_limit: int = 8192) -> None:
        if not 0 <= soft_limit < hard_limit:
            raise ValueError(
                f"hard_limit must be above soft_limit, got {hard_limit} and soft_limit {soft_limit}"
            )
        self._soft, self._hard = soft_limit, hard_limit

    async def __call__(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> Reward:  # noqa: ARG002
        if episode.tokens <= self._soft:
            return Reward(0.0, "short")
        if episode.tokens >= self._hard:
            return Reward(-1.0, "over_hard_limit")
        return Reward(-(episode.tokens - self._soft) / (self._hard - self._soft), "over_soft_limit")


class ToolWaitReward:
    """A penalty for waiting: 0 to -1, linear in the seconds that the model waited for tool results.

    It does not count calls: a result that is ready when the model asks for it costs nothing. Measured times
    differ from run to run, so a run with this reward cannot be repeated exactly.
    None where the waiting time is unknown. Reasons: ``no_wait``, ``waited``, ``over_limit``.

    Args:
        limit_s: seconds at and above which the penalty is -1.
        free_s: seconds without a penalty.
    """

    value_range: ClassVar = (-1.0, 0.0)

    def __init__(self, *, limit_s: float = 10.0, free_s: float = 0.0) -> None:
        if not (math.isfinite(limit_s) and 0 <= free_s < limit_s):
            raise ValueError(f"limit_s must be above free_s, got free_s {free_s} and limit_s {limit_s}")
        self._limit, self._free = limit_s, free_s

    async def __call__(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> Reward | None:  # noqa: ARG002
        waited = episode.tool_wait_seconds
        if waited is None:
            return None
        if waited <= self._free:
            return Reward(0.0, "no_wait")
        if waited >= self._limit:
            return Reward(-1.0, "over_limit")
        return Reward(-(waited - self._free) / (self._limit - self._free), "waited")


class FormatReward:
    """1.0 if the response keeps the protocol, else 0.0.

    Reasons: ``kept``, ``open_fence`` (a Python block is not closed), ``pending_blocks`` (blocks that never
    ran), ``no_box`` (no boxed answer).

    Args:
        marker: the execute marker, for responses from servers that do not report pending blocks.
    """

    value_range: ClassVar = (0.0, 1.0)

    def __init__(self, *, marker: str = "<tool_call>") -> None:
        if not marker:
            raise ValueError("marker must not be empty")
        self._marker = marker

    async def __call__(self, episode: FinishedEpisode, row: Mapping[str, Any]) -> Reward:  # noqa: ARG002
        open_fence, pending = episode.open_fence, episode.pending_blocks
        if open_fence is None or pending is None:
            scanned_fence, scanned_pending = self._scan(episode.text)
            open_fence = scanned_fence if open_fence is None else open_fence
            pending = scanned_pending if pending is None else pending
        if open_fence:
            return Reward(0.0, "open_fence")
        if pending:
            return Reward(0.0, "pending_blocks")
        return Reward(1.0, "kept") if episode.answer is not None else Reward(0.0, "no_box")

    def _scan(self, text: str) -> tuple[bool, int]:
        scanner = FenceScanner(self._marker)
        pending = 0
        for event in scanner.feed(text + "\n"):
            match event:
                case BlockClosed():
                    pending += 1
                case MarkerSeen():
                    pending = 0
        return scanner.in_code, pending


SHIPPED: Final[Mapping[str, Callable[..., RewardFunction]]] = {
    "math": MathReward,
    "multiple_choice": MultipleChoiceReward,
    "exact_match": ExactMatchReward,
    "length": LengthReward,
    "tool_wait": ToolWaitReward,
    "format": FormatReward,
}
"""Shipped rewards by name. The keyword arguments of each class are its options."""
