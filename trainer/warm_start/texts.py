"""From solved problems and chat to token ids, rendered as a server renders them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from service.deferral.observation import observation_ids
from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import with_instruction
from service.engines.base import Tokenizer
from trainer.quickstart.draws import training_problem, training_trace
from trainer.quickstart.traces import Trace, TraceMix, write_trace
from trainer.training.supervised import TrainingText
from trainer.warm_start.chat import Exchange


class TextWriter:
    """Writes texts under one policy.

    Args:
        tokenizer: the checkpoint's.
        policy: decides the instruction and the form of observations.
        end_id: token that ends the model's turn.
    """

    def __init__(self, tokenizer: Tokenizer, policy: DeferralPolicy, end_id: int) -> None:
        self._tokenizer = tokenizer
        self._policy = policy
        self._end_id = end_id

    def trace(self, trace: Trace) -> TrainingText:
        """A solved problem: what the model writes is learned, what it reads is not."""
        ids = self._prompt(trace.problem.text)
        learned = [False] * len(ids)
        for segment in trace.segments:
            if segment.source == "observed":
                piece = observation_ids(segment.text, self._tokenizer, self._policy)
            else:
                piece = self._tokenizer.encode(segment.text, allow_special=True)
            ids += piece
            learned += [segment.source == "written"] * len(piece)
        return TrainingText([*ids, self._end_id], [*learned, True])

    def chat(self, exchange: Exchange) -> TrainingText:
        """An ordinary request and its answer, under the same instruction as the problems."""
        ids = self._prompt(exchange.request)
        answer = self._tokenizer.encode(exchange.answer, allow_special=False)
        learned = [False] * len(ids) + [True] * (len(answer) + 1)
        return TrainingText([*ids, *answer, self._end_id], learned)

    def _prompt(self, question: str) -> list[int]:
        turns = with_instruction([{"role": "user", "content": question}], self._policy.prompt)
        return self._tokenizer.render_chat(turns, template_kwargs={"enable_thinking": False})


def training_texts(
    writer: TextWriter,
    chat: Sequence[TrainingText],
    *,
    seed: int,
    mix: TraceMix,
    marker: str,
    chat_share: float,
    max_tokens: int,
    step: int,
    count: int,
) -> list[TrainingText]:
    """Return the ``count`` texts of step ``step``, the same for the same arguments.

    Args:
        writer: writes the problems.
        chat: texts to draw ordinary chat from; without any, all texts are problems.
        seed: of the run.
        mix: of the solutions.
        marker: the execute marker.
        chat_share: of the texts.
        max_tokens: longer problems are replaced by others.
        step: counted from 0.
        count: texts of a step.
    """
    rng = Random(f"texts {seed} {step}")  # noqa: S311 - nothing secret
    short_chat = [text for text in chat if len(text.ids) <= max_tokens]
    # Dealt out rather than drawn, so that each step has both kinds.
    chats = (step + 1) * count * chat_share // 1 - step * count * chat_share // 1 if short_chat else 0
    texts = [rng.choice(short_chat) for _ in range(int(chats))]
    index = step * count * 4
    while len(texts) < count:
        text = writer.trace(training_trace(seed, index, mix, marker))
        index += 1
        if len(text.ids) <= max_tokens:
            texts.append(text)
    return texts


def held_out_texts(
    writer: TextWriter, *, seed: int, mix: TraceMix, marker: str, max_tokens: int
) -> Iterator[TrainingText]:
    """Yield solutions of problems that no seed trains on."""
    rng = Random(f"held-out texts {seed}")  # noqa: S311 - nothing secret
    while True:
        problem = training_problem(rng, mix, marker, held_out=True)
        text = writer.trace(write_trace(problem, rng, mix, marker))
        if len(text.ids) <= max_tokens:
            yield text
