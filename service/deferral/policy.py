"""``deferral.json``: the variant of the protocol that a checkpoint was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from service.deferral.prompt import DEFAULT_PROMPT, PROMPTS

FILE_NAME: Final = "deferral.json"
_SINCE: Final = {
    "mode": 2,
    "thinking": 4,
    **dict.fromkeys(
        ("unflushed", "answer", "max_output_tokens", "max_output_chars", "traceback", "observation"), 3
    ),
}
"""Schema version that introduced each of the newer fields."""


class DeferralPolicy(BaseModel):
    """The protocol as one checkpoint was trained with it. The defaults are those of the paper (section 4)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[4] = 4
    """Files of version 1 (without ``mode``), 2 (without ``unflushed`` and the fields about output) and 3
    (without ``thinking``) are also accepted."""
    mode: Literal["deferred", "immediate"] = "deferred"
    """Time at which code runs: at the execute marker, or at every closed block."""
    unflushed: Literal["drop", "run"] = "drop"
    """Handling of blocks that are still pending when the model ends its turn. ``drop``: they never run, and
    the episode ends. ``run``: the server flushes them as if the model had written the marker, and the model
    continues after the output. The server runs neither code inside ``<think>`` nor code that is the answer
    itself (see `service.deferral.code_request`)."""
    answer: Literal["boxed", "any"] = "boxed"
    """Condition that ends an episode: a boxed answer, or any turn that leaves nothing to run."""
    marker: str = "<tool_call>"
    """The execute marker: a single token of the vocabulary, looked up by its text."""
    prompt: str = DEFAULT_PROMPT
    """Version of the instruction, see `service.deferral.prompt`."""
    thinking: bool = False
    """Whether the checkpoint was trained to think first (``<think>``). If false, the server ignores a
    request's reasoning effort in replies with deferred execution."""
    max_turns: int = Field(default=5, ge=1)
    """Maximum number of turns per episode. The last turn has no flush."""
    max_turn_tokens: int = Field(default=8000, ge=1)
    """Maximum number of sampled tokens per turn."""
    max_episode_tokens: int = Field(default=16000, ge=1)
    """Maximum number of prompt, sampled and observation tokens together."""
    run_limit_s: float = Field(default=3.0, gt=0)
    """Wall-clock seconds that a flush may run."""
    max_output_tokens: int = Field(default=256, ge=1)
    """Maximum number of output tokens that the model reads per flush. The middle of longer output is
    removed."""
    max_output_chars: int = Field(default=512, ge=1)
    """Maximum number of output characters per flush, applied before the token limit."""
    traceback: Literal["last_line", "full"] = "last_line"
    """Part of an error that the model reads: only the last line of stderr, or the printed output and all of
    stderr."""
    observation: Literal["result", "output_block"] = "result"
    """Format of the output in the context: the paper's ``Code execution result: ...</tool_call>``, or a
    fenced ``output`` block, which untrained models know from their pre-training."""

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, data: Any) -> Any:
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version not in (1, 2, 3):
            return data
        newer = [name for name, since in _SINCE.items() if since > version and name in data]
        if newer:
            raise ValueError(
                f"{newer[0]} requires schema_version {_SINCE[newer[0]]}, but the file has {version}"
            )
        return {**data, "schema_version": 4}

    @field_validator("prompt")
    @classmethod
    def _known_prompt(cls, value: str) -> str:
        if value not in PROMPTS:
            raise ValueError(f"unknown prompt version {value!r}; known versions: {', '.join(PROMPTS)}")
        return value

    @classmethod
    def load(cls, model_dir: Path, default: DeferralPolicy | None = None) -> DeferralPolicy:
        """Return the policy stored beside a checkpoint, or ``default`` (the paper's policy) if there is none.

        Args:
            model_dir: directory of the checkpoint, or a file of weights such as ``model.gguf``; see
                `policy_path`.
            default: see above.

        Raises:
            pydantic.ValidationError: the file is not a valid policy.
        """
        path = policy_path(model_dir)
        if path.is_file():
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        return default or PAPER_POLICY

    def save(self, model_dir: Path) -> None:
        """Write the policy beside a checkpoint: a directory, or a file of weights."""
        policy_path(model_dir).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def policy_path(model: Path) -> Path:
    """Return the file of a model's policy: in its directory, or beside ``model.gguf`` the file
    ``model.gguf.deferral.json``."""
    return model.with_name(f"{model.name}.{FILE_NAME}") if model.is_file() else model / FILE_NAME


PAPER_POLICY: Final = DeferralPolicy()
"""The paper's policy. Training and evaluation use it for a checkpoint without ``deferral.json``."""
ASSISTANT_POLICY: Final = DeferralPolicy(
    mode="immediate",
    unflushed="run",
    answer="any",
    prompt="assistant-v1",
    thinking=True,
    max_turns=20,
    max_turn_tokens=2**20,
    max_episode_tokens=2**20,
    run_limit_s=60,
    max_output_tokens=4000,
    max_output_chars=32_000,
    traceback="full",
    observation="output_block",
)
"""Default of the server for a checkpoint without ``deferral.json``: a general assistant with the limits of a
code interpreter. Only the model's context limits the tokens. Training and evaluation use the paper's policy
instead."""
