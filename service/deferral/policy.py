"""``deferral.json``: how a checkpoint was taught to defer, kept beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from service.deferral.prompt import DEFAULT_PROMPT, PROMPTS

FILE_NAME: Final = "deferral.json"
_SINCE: Final = {
    "mode": 2,
    **dict.fromkeys(
        ("unflushed", "answer", "max_output_tokens", "max_output_chars", "traceback", "observation"), 3
    ),
}
"""The schema version in which each of the newer fields appeared."""


class DeferralPolicy(BaseModel):
    """The protocol as one checkpoint knows it. The defaults are the paper's (section 4)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[3] = 3
    """Files of version 1 (without ``mode``) and 2 (without ``unflushed`` and the fields on output) are
    read."""
    mode: Literal["deferred", "immediate"] = "deferred"
    """When code runs: at the execute marker, or at every closed block, marker or not."""
    unflushed: Literal["drop", "run"] = "drop"
    """What happens to blocks that are still pending when the model ends its turn. ``drop``: they never run
    and the episode ends. ``run``: the server flushes them as if the model had written the marker, and the
    model continues after the output. The server never runs code inside ``<think>``, nor code that is the
    answer itself (see `service.deferral.code_request`)."""
    answer: Literal["boxed", "any"] = "boxed"
    """What ends an episode: a boxed answer, or any turn that leaves nothing to run."""
    marker: str = "<tool_call>"
    """The execute marker, a single token of the vocabulary, found by name."""
    prompt: str = DEFAULT_PROMPT
    """Version of the instruction, see `service.deferral.prompt`."""
    max_turns: int = Field(default=5, ge=1)
    """Turns an episode: one less flush, and a last turn."""
    max_turn_tokens: int = Field(default=8000, ge=1)
    """New tokens a turn."""
    max_episode_tokens: int = Field(default=16000, ge=1)
    """Prompt, sampled and observation tokens together."""
    run_limit_s: float = Field(default=3.0, gt=0)
    """Wall-clock seconds a flush may run."""
    max_output_tokens: int = Field(default=256, ge=1)
    """Tokens of a flush's output that the model reads; the middle is cut out."""
    max_output_chars: int = Field(default=512, ge=1)
    """Characters of it, cut before the tokens are counted."""
    traceback: Literal["last_line", "full"] = "last_line"
    """What the model reads of an error: the exception's line alone, or the printed output and all of
    stderr."""
    observation: Literal["result", "output_block"] = "result"
    """How the output is written into the context: the paper's ``Code execution result: ...</tool_call>``, or
    a fenced ``output`` block, which untrained models know from their pre-training."""

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, data: Any) -> Any:
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version not in (1, 2):
            return data
        newer = [name for name, since in _SINCE.items() if since > version and name in data]
        if newer:
            raise ValueError(
                f"{newer[0]} came with schema_version {_SINCE[newer[0]]}, the file says {version}"
            )
        return {**data, "schema_version": 3}

    @field_validator("prompt")
    @classmethod
    def _known_prompt(cls, value: str) -> str:
        if value not in PROMPTS:
            raise ValueError(f"prompt version {value!r} is unknown; known are {', '.join(PROMPTS)}")
        return value

    @classmethod
    def load(cls, model_dir: Path, default: DeferralPolicy | None = None) -> DeferralPolicy:
        """Return the policy beside a checkpoint, or ``default`` (the paper's policy) if it has none.

        Raises:
            pydantic.ValidationError: the file does not hold a policy.
        """
        path = model_dir / FILE_NAME
        if path.is_file():
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        return default or PAPER_POLICY

    def save(self, model_dir: Path) -> None:
        (model_dir / FILE_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


PAPER_POLICY: Final = DeferralPolicy()
"""The policy of the paper: what training and evaluation use for a checkpoint without ``deferral.json``."""
ASSISTANT_POLICY: Final = DeferralPolicy(
    mode="immediate",
    unflushed="run",
    answer="any",
    prompt="assistant-v1",
    max_turns=20,
    max_turn_tokens=2**20,
    max_episode_tokens=2**20,
    run_limit_s=60,
    max_output_tokens=4000,
    max_output_chars=32_000,
    traceback="full",
    observation="output_block",
)
"""Serving default for a checkpoint without ``deferral.json``: a general assistant with the limits of a code
interpreter. Token limits are the model's context. Training and evaluation use the paper's policy instead."""
