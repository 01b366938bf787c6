"""From traces to batches: token ids, and which of them are learned.

Random tokens written three times over: what a model first learns to copy on.

Copying takes two attention layers that only pay off together. On traces alone, where few tokens are copied,
they are slow to form: most of a run is a plateau. Here all but the first third is copied. The first half
of the drill repeats its tokens in place, which can be learned by counting positions and is quick; the second
half repeats numbers out of order, which can only be learned by looking them up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from transformers import PreTrainedTokenizerFast

from service.deferral.observation import observation_ids
from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import instruct
from trainer.quickstart.draws import training_trace
from trainer.quickstart.problems import PracticeProblem
from trainer.quickstart.traces import Trace, TraceMix

IGNORED = -100
"""Label of a token that is not learned."""
STRIDE = 16
"""Lengths are padded to a multiple of this."""
POOL = 1024
"""Traces that are sorted by length together."""


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """The observation formatter's view of a tokenizer. Outputs of our own code spell no special token."""

    inner: PreTrainedTokenizerFast

    def encode(self, text: str, *, allow_special: bool) -> list[int]:  # noqa: ARG002
        ids: list[int] = self.inner.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.inner.decode(list(ids)))


@dataclass(frozen=True, slots=True)
class Example:
    ids: list[int]
    learned: list[bool]
    """Whether a token was written by the model: only these are learned."""


def prompt_ids(problem: PracticeProblem, tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """The prompt as it is served: the instruction in the last user turn only, thinking off."""
    messages = [{"role": "system", "content": problem.system}] if problem.system else []
    for question, reply in problem.earlier:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    question = instruct(problem.text, prompt) if problem.has_instruction else problem.text
    text = tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": question}],
        add_generation_prompt=True,
        enable_thinking=False,
        tokenize=False,
    )
    ids: list[int] = tokenizer.encode(str(text), add_special_tokens=False)
    return ids


def encode_trace(trace: Trace, tokenizer: PreTrainedTokenizerFast, prompt: str) -> Example:
    ids = prompt_ids(trace.problem, tokenizer, prompt)
    learned = [False] * len(ids)
    for segment in trace.segments:
        if segment.source == "observed":
            piece = observation_ids(segment.text, TextTokenizer(tokenizer))
        else:
            piece = tokenizer.encode(segment.text, add_special_tokens=False)
        ids += piece
        learned += [segment.source == "written"] * len(piece)
    return Example([*ids, tokenizer.eos_token_id], [*learned, True])


def collate(
    examples: Sequence[Example], pad_id: int, *, rows: int | None = None, length: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(ids, labels)``, int64 [rows, length], padded on the right and below; `IGNORED` where nothing is
    learned.

    No attention mask is needed: attention is causal and what follows the end is never learned.

    Args:
        rows: Default: as many as there are examples.
        length: Default: that of the longest example, rounded up to a multiple of `STRIDE`.
    """
    if length is None:
        length = math.ceil(max(len(example.ids) for example in examples) / STRIDE) * STRIDE
    ids = torch.full((rows or len(examples), length), pad_id)
    labels = torch.full_like(ids, IGNORED)
    for row, example in enumerate(examples):
        end = len(example.ids)
        ids[row, :end] = torch.tensor(example.ids)
        labels[row, :end] = ids[row, :end].where(torch.tensor(example.learned), torch.tensor(IGNORED))
    return ids, labels


def lengths(batch_tokens: int) -> list[int]:
    """Lengths that a batch of exactly ``batch_tokens`` tokens can have, in ascending order."""
    return [n for n in range(STRIDE, batch_tokens + 1, STRIDE) if batch_tokens % n == 0]


def batches(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    mix: TraceMix,
    policy: DeferralPolicy,
    tokens: int,
    start: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches from number ``start`` on, of traces of similar length. The same for the same arguments.

    Every batch has exactly ``tokens`` tokens, padding included: on a CPU, kernels are compiled for each
    shape, and so the matrices of all layers have the same one.
    """
    number = 0
    for pool in itertools.count():
        examples = [
            encode_trace(training_trace(seed, i, mix, policy.marker), tokenizer, policy.prompt)
            for i in range(pool * POOL, (pool + 1) * POOL)
        ]
        groups = grouped(examples, tokens)
        Random(f"order {seed} {pool}").shuffle(groups)
        for length, group in groups:
            if number >= start:
                yield collate(group, tokenizer.pad_token_id, rows=tokens // length, length=length)
            number += 1


def grouped(examples: Sequence[Example], tokens: int) -> list[tuple[int, list[Example]]]:
    """Batches of ``examples``, sorted by length, each with the length that it is padded to.

    An example that is longer than a batch is left out.
    """
    waiting = sorted(examples, key=lambda example: len(example.ids))
    groups = []
    while waiting:
        length = next((n for n in lengths(tokens) if n >= len(waiting[-1].ids)), None)
        rows = 1 if length is None else tokens // length
        if length is not None:
            groups.append((length, waiting[-rows:]))
        del waiting[-rows:]
    return groups


ROWS = 16
"""Sequences a step."""
PART = 24
"""Tokens in one part of a sequence that repeats in place."""
NUMBERS = 8
"""Numbers in one part of a sequence that repeats out of order."""

Batch = tuple[torch.Tensor, torch.Tensor]


def number_pieces(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of the tokens that numbers are made of."""
    vocabulary = tokenizer.get_vocab().items()
    return sorted(index for token, index in vocabulary if token.isascii() and token.isdigit())


def drill_batch(tokenizer: PreTrainedTokenizerFast, *, seed: int, step: int, steps: int) -> Batch:
    """``(ids, labels)`` of step ``step`` of ``steps``, int64 [ROWS, time]; the first part is not learned."""
    rng = Random(f"drill {seed} {step}")
    pieces = number_pieces(tokenizer)
    in_place = step < steps // 2
    rows = [
        _in_place(pieces, len(tokenizer), rng) if in_place else _out_of_order(tokenizer, rng)
        for _ in range(ROWS)
    ]
    # Few different lengths: kernels are compiled for each.
    length = min(len(ids) for ids, _ in rows) // 8 * 8
    ids = torch.tensor([ids[:length] for ids, _ in rows])
    labels = ids.clone()
    for index, (_, given) in enumerate(rows):
        labels[index, :given] = IGNORED
    return ids, labels


def _in_place(pieces: list[int], vocabulary: int, rng: Random) -> tuple[list[int], int]:
    """Four in five tokens are pieces of numbers."""
    part = [rng.choice(pieces) if rng.random() < 0.8 else rng.randrange(vocabulary) for _ in range(PART)]
    return part * 3, PART + 1


def _out_of_order(tokenizer: PreTrainedTokenizerFast, rng: Random) -> tuple[list[int], int]:
    """Numbers, each with a word or two after it; then the same in another order, twice."""
    numbers = []
    for _ in range(NUMBERS):
        digits = f" {rng.randrange(10 ** (length := rng.randint(3, 8))):0{length}d}"
        words = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 2))]
        numbers.append(tokenizer.encode(digits, add_special_tokens=False) + words)
    shuffled = [rng.sample(numbers, NUMBERS) for _ in range(2)]
    if rng.random() < 0.5:
        shuffled[0] = numbers
    given = sum(map(len, numbers))
    return [token for part in (numbers, *shuffled) for number in part for token in number], given
