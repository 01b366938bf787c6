"""Training batches of a warm start: token ids and labels from traces, and the copying drill.

The drill consists of random tokens that are repeated twice. Copying needs two attention layers that are only
useful together. On traces alone, in which few tokens are copied, they form slowly, and the loss stays on a
plateau for most of the run. In the drill, all but the first third is copied. Its first half repeats tokens in
place, which is quickly learned by counting positions. Its second half repeats numbers out of order, which
requires looking them up.
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
from trainer.quickstart.problems.multi_hop import prompt_section
from trainer.quickstart.traces import Trace, TraceMix

IGNORED = -100
"""Label of tokens that are excluded from the loss."""
STRIDE = 16
"""Lengths are padded to a multiple of this."""
POOL = 1024
"""Number of traces that are sorted by length together."""


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """Adapter of a tokenizer for the observation formatter. Outputs of traces contain no special tokens."""

    inner: PreTrainedTokenizerFast

    def encode(self, text: str, *, allow_special: bool) -> list[int]:  # noqa: ARG002
        ids: list[int] = self.inner.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.inner.decode(list(ids)))


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a trace."""

    ids: list[int]
    learned: list[bool]
    """True for tokens written by the model; only these are in the loss."""


def prompt_ids(problem: PracticeProblem, tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Return the prompt as in serving: the instruction only in the last user turn, and thinking off."""
    messages = [{"role": "system", "content": problem.system}] if problem.system else []
    for question, reply in problem.earlier:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    question = instruct(problem.text, prompt) if problem.has_instruction else problem.text
    if problem.uses_search:
        question = f"{prompt_section()}\n\n{question}"
    text = tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": question}],
        add_generation_prompt=True,
        enable_thinking=False,
        tokenize=False,
    )
    ids: list[int] = tokenizer.encode(str(text), add_special_tokens=False)
    return ids


def encode_trace(trace: Trace, tokenizer: PreTrainedTokenizerFast, prompt: str) -> Example:
    """Return the token ids of a trace with its prompt."""
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
    """Return ``(ids, labels)``, int64 [rows, length], padded on the right and at the bottom.

    Labels are `IGNORED` for tokens that are excluded from the loss. No attention mask is needed: attention is
    causal, and padding is excluded from the loss.

    Args:
        examples: at most ``rows``.
        pad_id: id of the padding token.
        rows: number of rows. Default: the number of examples.
        length: length of a row. Default: the longest example, rounded up to a multiple of `STRIDE`.
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
    """Return the possible row lengths of a batch of exactly ``batch_tokens`` tokens, in ascending order."""
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
    """Yield endless batches of traces of similar length, from batch number ``start`` on. Deterministic.

    Every batch has exactly ``tokens`` tokens, including padding. On a CPU, kernels are compiled per shape, so
    the matrices of all layers keep the same shape.
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
    """Group ``examples`` of similar length into batches; return (padded length, examples) pairs.

    Examples that are longer than a batch are dropped.
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
"""Sequences per drill batch."""
PART = 24
"""Tokens in the repeated part of an in-place sequence."""
NUMBERS = 8
"""Numbers in the repeated part of an out-of-order sequence."""

Batch = tuple[torch.Tensor, torch.Tensor]


def number_pieces(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids of the number pieces."""
    vocabulary = tokenizer.get_vocab().items()
    return sorted(index for token, index in vocabulary if token.isascii() and token.isdigit())


def drill_batch(tokenizer: PreTrainedTokenizerFast, *, seed: int, step: int, steps: int) -> Batch:
    """Return ``(ids, labels)`` of a drill step, int64 [ROWS, time]. The first part is excluded from the
    loss."""
    rng = Random(f"drill {seed} {step}")
    pieces = number_pieces(tokenizer)
    in_place = step < steps // 2
    rows = [
        _in_place(pieces, len(tokenizer), rng) if in_place else _out_of_order(tokenizer, rng)
        for _ in range(ROWS)
    ]
    # Few different lengths, because kernels are compiled for each.
    length = min(len(ids) for ids, _ in rows) // 8 * 8
    ids = torch.tensor([ids[:length] for ids, _ in rows])
    labels = ids.clone()
    for index, (_, given) in enumerate(rows):
        labels[index, :given] = IGNORED
    return ids, labels


def _in_place(pieces: list[int], vocabulary: int, rng: Random) -> tuple[list[int], int]:
    """Return a sequence repeated in place and its number of given tokens. 80 % are number pieces."""
    part = [rng.choice(pieces) if rng.random() < 0.8 else rng.randrange(vocabulary) for _ in range(PART)]
    return part * 3, PART + 1


def _out_of_order(tokenizer: PreTrainedTokenizerFast, rng: Random) -> tuple[list[int], int]:
    """Return numbers with a word or two after each, then twice the same in another order."""
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
