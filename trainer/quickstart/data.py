"""From traces to batches: token ids, and which of them are learned."""

from __future__ import annotations

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
"""Lengths are padded to a multiple of this: the CPU's kernels are compiled, and kept, for each shape anew."""
POOL = 32
"""Batches that are sorted by length together."""


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
    """The prompt as it is served: one user turn, thinking off."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": instruct(problem.text, prompt)}],
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


def collate(examples: Sequence[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``(ids, labels)``, int64 [batch, time], padded on the right; `IGNORED` where nothing is learned.

    No attention mask is needed: attention is causal and what follows the end is never learned.
    """
    longest = math.ceil(max(len(example.ids) for example in examples) / STRIDE) * STRIDE
    ids = torch.full((len(examples), longest), pad_id)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        labels[row, :length] = ids[row, :length].where(torch.tensor(example.learned), torch.tensor(IGNORED))
    return ids, labels


def batches(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    style: Style,
    policy: DeferralPolicy,
    size: int,
    start: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches from number ``start`` on, of traces of like length. The same for the same arguments.

    Traces are drawn in pools of ``POOL`` batches and sorted by length within them, so that little is padded.
    """
    pool = start // POOL
    while True:
        first = pool * POOL * size
        examples = [
            encode_trace(training_trace(seed, first + i, style, policy.marker), tokenizer, policy.prompt)
            for i in range(POOL * size)
        ]
        examples.sort(key=lambda example: len(example.ids))
        order = list(range(POOL))
        Random(f"order {seed} {pool}").shuffle(order)  # noqa: S311
        skipped = start - pool * POOL if pool == start // POOL else 0
        for number in order[skipped:]:
            yield collate(examples[number * size : (number + 1) * size], tokenizer.pad_token_id)
        pool += 1
