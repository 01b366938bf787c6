"""From solved problems and chat to token ids, rendered as a server renders them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from service.deferral.observation import observation_ids
from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import with_instruction
from service.engines.base import Tokenizer
from trainer.quickstart.draws import training_problem
from trainer.quickstart.traces import Segment, TraceMix, write_trace
from trainer.training.supervised import TrainingText
from trainer.warm_start.chat import Exchange
from trainer.warm_start.problems import word_problem
from trainer.warm_start.solved import BOX_REQUEST, SampledSolution


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

    def trace(self, question: str, segments: Sequence[Segment]) -> TrainingText:
        """A solved problem: what the model writes is learned, what it reads is not."""
        ids = self._prompt(question)
        learned = [False] * len(ids)
        for segment in segments:
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
    solved: Sequence[TrainingText] = (),
    *,
    seed: int,
    mix: TraceMix,
    word_share: float,
    marker: str,
    chat_share: float,
    solved_share: float = 0.0,
    max_tokens: int,
    step: int,
    count: int,
) -> list[TrainingText]:
    """Return the ``count`` texts of step ``step``, the same for the same arguments.

    Args:
        writer: writes the problems.
        chat: texts to draw ordinary chat from; without any, all texts are problems.
        solved: texts to draw sampled solutions from; without any, all problems are generated.
        seed: of the run.
        mix: of the solutions.
        word_share: of word problems and school mathematics among the problems.
        marker: the execute marker.
        chat_share: of the texts.
        solved_share: of sampled solutions among the problems.
        max_tokens: longer problems are replaced by others.
        step: counted from 0.
        count: texts of a step.
    """
    rng = Random(f"texts {seed} {step}")
    texts = _dealt(rng, chat, chat_share, max_tokens, step, count)
    problems = count - len(texts)
    texts += _dealt(rng, solved, solved_share * problems / count, max_tokens, step, count)
    index = step * count * 4
    while len(texts) < count:
        drawn = Random(f"problem {seed} {index}")
        text = _generated(writer, drawn, mix, word_share, marker, held_out=False)
        index += 1
        if len(text.ids) <= max_tokens:
            texts.append(text)
    return texts


def _dealt(
    rng: Random, texts: Sequence[TrainingText], share: float, max_tokens: int, step: int, count: int
) -> list[TrainingText]:
    """Return ``share`` of ``count`` texts, rounded so that the steps together keep to the share."""
    short = [text for text in texts if len(text.ids) <= max_tokens]
    number = (step + 1) * count * share // 1 - step * count * share // 1 if short else 0
    return [rng.choice(short) for _ in range(int(number))]


def solved_texts(
    writer: TextWriter, solutions: Sequence[SampledSolution], *, delayed_weight: int
) -> list[TrainingText]:
    """Return the texts of the kept solutions, half of them with a request for a box around the answer.

    Args:
        writer: writes them.
        solutions: of `trainer.warm_start.solved.sample_solutions`.
        delayed_weight: number of copies of a solution with delayed blocks.
    """
    texts: list[TrainingText] = []
    kept = [solution for solution in solutions if solution.is_kept]
    for index, solution in enumerate(kept):
        asks = index % 2 == 0 and "boxed" not in solution.question
        text = writer.trace(solution.question + (BOX_REQUEST if asks else ""), solution.segments)
        texts += [text] * (delayed_weight if solution.delayed else 1)
    return texts


def held_out_texts(
    writer: TextWriter, *, seed: int, mix: TraceMix, word_share: float, marker: str, max_tokens: int
) -> Iterator[TrainingText]:
    """Yield solutions of problems that no seed trains on."""
    rng = Random(f"held-out texts {seed}")
    while True:
        text = _generated(writer, rng, mix, word_share, marker, held_out=True)
        if len(text.ids) <= max_tokens:
            yield text


def _generated(
    writer: TextWriter, rng: Random, mix: TraceMix, word_share: float, marker: str, *, held_out: bool
) -> TrainingText:
    if rng.random() >= word_share:
        problem = training_problem(rng, mix, marker, held_out=held_out)
    else:
        problem = word_problem(rng)
        while problem.held_out != held_out:
            problem = word_problem(rng)
    return writer.trace(problem.text, write_trace(problem, rng, mix, marker).segments)
