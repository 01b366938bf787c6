"""Observations: the text that the model reads after a flush. Shared by the server and the trainer.

The texts are part of the trained protocol. Changing one requires a new policy field, so that existing
checkpoints keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from service.deferral.policy import PAPER_POLICY, DeferralPolicy

TIMEOUT_TEXT: Final = "interpreter timeout"
NOTHING_PENDING: Final = "no code is pending"
_PREFIX: Final = "\nCode execution result: "
_BLOCK: Final = "\n```output\n"
OBSERVATION_SIGNS: Final = (_PREFIX, _BLOCK)
"""Texts with which an observation begins in a reply."""
_CLOSE: Final = "</tool_call>"
_GAP: Final = "\n[... output cut here ...]\n"
_CALL_CHARS: Final = 80
_LISTED_CALLS: Final = 5
_NO_OUTPUT: Final = "[nothing was printed]"


class ObservationTokenizer(Protocol):
    """The part of a tokenizer that formatting requires."""

    def encode(self, text: str, *, allow_special: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class FlushResult(Protocol):
    """The part of a sandbox's ``ExecutionResult`` that formatting requires."""

    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def signal(self) -> int | None: ...


def result_text(result: FlushResult, policy: DeferralPolicy = PAPER_POLICY) -> str:
    """Return the output of a flush as the model reads it, before truncation.

    By default this is stdout, or the last line of stderr if there is any (the paper's rule). With
    ``traceback: full`` it is stdout followed by stderr. If the code was killed, a text with the reason
    replaces the traceback.
    """
    full = policy.traceback == "full"
    printed = f"{result.stdout.rstrip()}\n".lstrip("\n") if full and result.stdout.strip() else ""
    if result.status == "timeout":
        return printed + TIMEOUT_TEXT
    if result.status == "oom":
        return printed + "MemoryError: the memory limit was reached"
    if result.status == "sandbox_error":
        return "SandboxError: the sandbox failed; all variables are lost"
    stderr_lines = result.stderr.strip().splitlines()
    if stderr_lines:
        return printed + result.stderr.strip() if full else stderr_lines[-1].strip()
    if result.status == "error" and result.signal is not None:
        return f"{printed}the interpreter was killed by signal {result.signal}"
    return result.stdout.rstrip("\n")


def executed_text(output: str, tokenizer: ObservationTokenizer, policy: DeferralPolicy = PAPER_POLICY) -> str:
    """Return the text that follows executed code in a reply: marker and observation.

    The marker is omitted for an ``output_block``, because the server runs such blocks without one.
    """
    shown = tokenizer.decode(observation_ids(output, tokenizer, policy))
    return shown if policy.observation == "output_block" else policy.marker + shown


def effects_note(calls: Sequence[str]) -> str:
    """Return the text that lists calls of tools which a failed flush does not undo; empty without any."""
    if not calls:
        return ""
    shown = [cut_middle(call, _CALL_CHARS, "...") for call in calls[:_LISTED_CALLS]]
    more = f" and {len(calls) - len(shown)} more" if len(calls) > len(shown) else ""
    return f"\nVariables were restored, but these calls took effect: {'; '.join(shown)}{more}"


def cut_middle(text: str, limit: int, gap: str = "") -> str:
    """Replace the middle of ``text`` by ``gap`` so that ``limit`` characters remain, half at each end."""
    if len(text) <= limit:
        return text
    head = limit - limit // 2
    return text[:head] + gap + text[len(text) - limit // 2 :]


def observation_ids(
    output: str, tokenizer: ObservationTokenizer, policy: DeferralPolicy = PAPER_POLICY
) -> list[int]:
    """Return the token ids of the observation for ``output``, truncated to ``max_output_tokens``.

    The output is encoded without special tokens: code that prints ``<|im_end|>`` can't end the turn. Only the
    closing ``</tool_call>`` of the paper's form is encoded as a special token.
    """
    in_block = policy.observation == "output_block"
    gap = _GAP if in_block else ""
    limit = policy.max_output_tokens
    output = cut_middle(output, policy.max_output_chars, gap)
    output_ids = tokenizer.encode(output, allow_special=False)
    if len(output_ids) > limit:
        limit = max(limit - len(tokenizer.encode(gap, allow_special=False)), 0)
        head, tail = limit - limit // 2, len(output_ids) - limit // 2
        while True:  # truncation can increase the number of tokens of rare text
            output = tokenizer.decode(output_ids[:head]) + gap + tokenizer.decode(output_ids[tail:])
            excess = len(tokenizer.encode(output, allow_special=False)) - policy.max_output_tokens
            if excess <= 0 or head == 0:
                break
            head, tail = max(head - excess, 0), min(tail + excess, len(output_ids))
    if in_block:
        return tokenizer.encode(f"{_BLOCK}{output or _NO_OUTPUT}\n```\n", allow_special=False)
    body = tokenizer.encode(f"{_PREFIX}{output}\n", allow_special=False)
    return body + tokenizer.encode(f"{_CLOSE}\n", allow_special=True)
