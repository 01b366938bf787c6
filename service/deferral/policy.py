"""``deferral.json``: how a checkpoint was taught to defer, kept beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from service.deferral.prompt import DEFAULT_PROMPT, PROMPTS

FILE_NAME: Final = "deferral.json"


class DeferralPolicy(BaseModel):
    """The protocol as one checkpoint knows it. The defaults are the paper's (section 4)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[2] = 2
    """A file of version 1, which knew no ``mode``, is read too."""
    mode: Literal["deferred", "immediate"] = "deferred"
    """When code runs: at the execute marker, or at every closed block, marker or not (a baseline)."""
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

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("schema_version") != 1:
            return data
        if "mode" in data:
            raise ValueError("mode came with schema_version 2, the file says 1")
        return {**data, "schema_version": 2}

    @field_validator("prompt")
    @classmethod
    def _known_prompt(cls, value: str) -> str:
        if value not in PROMPTS:
            raise ValueError(f"prompt version {value!r} is unknown; known are {', '.join(PROMPTS)}")
        return value

    @classmethod
    def load(cls, model_dir: Path) -> DeferralPolicy:
        """The policy beside a checkpoint; the defaults where it has none.

        Raises:
            pydantic.ValidationError: the file does not hold a policy.
        """
        path = model_dir / FILE_NAME
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else cls()

    def save(self, model_dir: Path) -> None:
        (model_dir / FILE_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
