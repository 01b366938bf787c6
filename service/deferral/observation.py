"""The one formatter of what the model reads after a flush. Server and trainer both use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

MAX_CHARS: Final = 512
MAX_TOKENS: Final = 256
TIMEOUT_TEXT: Final = "interpreter timeout"
NOTHING_PENDING: Final = "no code is pending"
_PREFIX: Final = "\nCode execution result: "
_CLOSE: Final = "</tool_call>"


class ObservationTokenizer(Protocol):
    """What the formatter needs of a tokenizer."""

    def encode(self, text: str, *, allow_special: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class FlushResult(Protocol):
    """What the formatter reads of a sandbox's result."""

    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def signal(self) -> int | None: ...


def result_text(result: FlushResult) -> str:
    """What a flush says: stdout if stderr is empty, else the last line of stderr (algorithm.md, section 1).

    A kill has no traceback to show, so it is named.
    """
    if result.status == "timeout":
        return TIMEOUT_TEXT
    if result.status == "oom":
        return "MemoryError: the memory limit was reached"
    if result.status == "sandbox_error":
        return "SandboxError: the sandbox failed; all variables are lost"
    stderr_lines = result.stderr.strip().splitlines()
    if stderr_lines:
        return stderr_lines[-1].strip()
    if result.status == "error" and result.signal is not None:
        return f"the interpreter was killed by signal {result.signal}"
    return result.stdout.rstrip("\n")


def cut_middle(text: str, limit: int = MAX_CHARS) -> str:
    """``text`` with its middle taken out so that ``limit`` characters stay, half at each end."""
    if len(text) <= limit:
        return text
    head = limit - limit // 2
    return text[:head] + text[len(text) - limit // 2 :]


def observation_ids(output: str, tokenizer: ObservationTokenizer) -> list[int]:
    """Token ids of the observation for ``output``; never more than ``MAX_TOKENS`` of them come from it.

    The output is encoded with special tokens off: code that prints ``<|im_end|>`` cannot end the turn.
    The closing ``</tool_call>`` is encoded with them on.
    """
    output = cut_middle(output)
    output_ids = tokenizer.encode(output, allow_special=False)
    if len(output_ids) > MAX_TOKENS:
        head = MAX_TOKENS - MAX_TOKENS // 2
        output = tokenizer.decode(output_ids[:head]) + tokenizer.decode(output_ids[-(MAX_TOKENS // 2) :])
    body = tokenizer.encode(f"{_PREFIX}{output}\n", allow_special=False)
    return body + tokenizer.encode(f"{_CLOSE}\n", allow_special=True)
