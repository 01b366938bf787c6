"""A task that a tiny model can learn in seconds: run the right one of two blocks and box what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from service.deferral.observation import observation_ids
from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import instruct
from service.engines.tokenizer import HFTokenizer
from service.sandbox.base import ExecutionResult
from tests.support.scripted import ScriptedSandbox, printed
from tests.support.tiny_qwen3 import make_checkpoint, make_model, make_tokenizer

QUESTION = "Which?"
GOLD = "1"
POLICY = DeferralPolicy(prompt="brief-v1", max_turns=3, max_turn_tokens=60, max_episode_tokens=300)


def run_print(blocks: list[str]) -> ExecutionResult:
    """Return the output of the task's program."""
    digit = re.search(r"print\((\d)\)", blocks[-1])
    return printed(f"{digit[1]}\n" if digit else "")


def toy_sandbox() -> ScriptedSandbox:
    return ScriptedSandbox(run_print)


def make_toy_checkpoint(directory: Path, *, steps: int = 300, **shape: object) -> Path:
    """A tiny model that runs ``print(0)`` or ``print(1)``, about half and half, and boxes the output.

    ``shape`` are fields of Qwen3Config.
    """
    make_checkpoint(directory)
    tokenizer = HFTokenizer(str(directory))
    model: Any = make_model(make_tokenizer(), initializer_range=0.05, **shape)
    batch = [_trace(tokenizer, digit) for digit in "01"]
    ids = torch.tensor([ids for ids, _ in batch])
    labels = torch.tensor([labels for _, labels in batch])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(directory)
    POLICY.save(directory)
    return directory


def _trace(tokenizer: HFTokenizer, digit: str) -> tuple[list[int], list[int]]:
    """Token ids and labels; the label is -100 for tokens that the model does not write."""
    message: dict[str, object] = {"role": "user", "content": instruct(QUESTION, POLICY.prompt)}
    prompt = tokenizer.render_chat([message], template_kwargs={"enable_thinking": False})
    ask = tokenizer.encode(f"```python\nprint({digit})\n```<tool_call>", allow_special=True)
    seen = observation_ids(digit, tokenizer)
    say = tokenizer.encode(f"\\boxed{{{digit}}}<|im_end|>", allow_special=True)
    return [*prompt, *ask, *seen, *say], [*[-100] * len(prompt), *ask, *[-100] * len(seen), *say]
