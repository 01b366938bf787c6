"""The tokens of an episode as they were sampled or given; the trainer reads them as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Transcript:
    """Prompt and response of one episode. The three response lists are aligned, one item a token.

    Attributes:
        prompt_ids: the prompt.
        ids: the response: sampled tokens and observations.
        mask: 1 where the model sampled the token, 0 where it was given.
        logprobs: the engine's log-probability of each sampled token; 0.0 where it was given.
        text: the response's text.
        dropped_ends: end-of-turn tokens that were sampled and left the context again, because the server ran
            pending code in their place: (position in ``ids``, token id, log-probability).
    """

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self.prompt_ids = tuple(prompt_ids)
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []
        self.dropped_ends: list[tuple[int, int, float]] = []
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def context_ids(self) -> list[int]:
        return [*self.prompt_ids, *self.ids]

    @property
    def sampled_tokens(self) -> int:
        return sum(self.mask)

    @property
    def observation_tokens(self) -> int:
        return len(self.mask) - sum(self.mask)

    def add_sampled(self, ids: Sequence[int], text: str, logprobs: Sequence[float]) -> None:
        self._add(ids, text, 1, logprobs)

    def add_observation(self, ids: Sequence[int], text: str) -> None:
        self._add(ids, text, 0, [0.0] * len(ids))

    def drop_end(self, endings: Mapping[int, str]) -> None:
        """Take the sampled end-of-turn token off the end of the response, if it is there.

        Args:
            endings: text of each token that ends a turn.
        """
        if not self.ids or self.ids[-1] not in endings or not self.mask[-1]:
            return
        token, logprob = self.ids.pop(), self.logprobs.pop()
        self.mask.pop()
        self.dropped_ends.append((len(self.ids), token, logprob))
        self._texts[-1] = self._texts[-1].removesuffix(endings[token])

    def _add(self, ids: Sequence[int], text: str, mask: int, logprobs: Sequence[float]) -> None:
        if len(logprobs) != len(ids):
            raise ValueError(f"{len(ids)} ids but {len(logprobs)} logprobs")
        self.ids.extend(ids)
        self.mask.extend([mask] * len(ids))
        self.logprobs.extend(logprobs)
        self._texts.append(text)
