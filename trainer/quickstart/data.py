"""From traces to batches: token ids, and which of them are learned."""

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
from trainer.quickstart.problems import Problem
from trainer.quickstart.traces import Style, Trace

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


def prompt_ids(problem: Problem, tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
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
    style: Style,
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
            encode_trace(training_trace(seed, i, style, policy.marker), tokenizer, policy.prompt)
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
