"""The published forms of ``executed_tools`` and ``deferral.json``, as versioned JSON schemas.

``scripts/generate`` writes them to ``schemas/``. A change that breaks a reader takes a new number and a new
file; a field that is added does not, so readers must pass over fields that they don't know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from service.deferral.episode import RequestedBy
from service.deferral.policy import DeferralPolicy
from service.sandbox.base import Status

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class _Published(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Block(_Published):
    """A code block that the model closed."""

    code: str
    """Its text, without the fence."""
    invoked_at_token: int = Field(ge=0)
    """Position in the episode of the token that closed it."""
    invoked_at: float
    """When that was, in Unix seconds."""


class Run(_Published):
    """When a block, or several as one script, ran. Unix seconds."""

    started_at: float
    finished_at: float


class _Tool(_Published):
    index: int = Field(ge=0)
    """Place of the flush in the reply, from 0."""
    id: str
    """The same in every chunk of a stream that speaks of this flush."""
    type: Literal["python"]
    blocks: list[Block]
    """All blocks that the flush runs, in order."""


class WaitingTool(_Tool):
    """A flush to be, in chunks of a stream: `pending` until the marker, then `running` until its result."""

    status: Literal["pending", "running"]


class FinishedTool(_Tool):
    """A flush that is done."""

    status: Status
    """`ok`, `error` (a traceback, an exit code, a signal), `timeout`, `oom`, `output_limit`, or
    `sandbox_error`: the sandbox failed, and nothing is known of the code."""
    output: str
    """What the model was shown."""
    delayed: int = Field(ge=0)
    """Blocks that did not run at once when they were closed, by the rule of the protocol."""
    requested_by: RequestedBy = "model"
    """Who decided that the blocks run: the model with its marker, or the server by the checkpoint's policy.
    The delay rate counts the model's flushes only."""
    flushed_at: float
    """When the model, or the server for it, asked for the output, in Unix seconds."""
    started_at: float | None
    """When the first block began to run; null where nothing ran."""
    finished_at: float | None
    runs: list[Run]
    wall_ms: float = Field(ge=0)
    """How long the code ran."""
    waited_ms: float = Field(ge=0)
    """How long the model waited for it."""
    hidden_ms: float = Field(ge=0)
    """The part of `wall_ms` before `flushed_at`, that is, while the model was still writing."""
    container_wait_ms: float = Field(default=0.0, ge=0)
    """How long the first block waited for a container, from its `invoked_at`. Not part of `wall_ms`; what of
    it lies after `flushed_at` is part of `waited_ms`."""


def executed_tools() -> dict[str, Any]:
    """Schema of one item of ``message.executed_tools`` and ``delta.executed_tools``, version 1."""
    form: TypeAdapter[FinishedTool | WaitingTool] = TypeAdapter(FinishedTool | WaitingTool)
    return _titled("executed_tools", 1, form.json_schema())


def deferral() -> dict[str, Any]:
    """Schema of ``deferral.json`` beside a checkpoint's weights, in the version that is written."""
    version = DeferralPolicy.model_fields["schema_version"].default
    return _titled("deferral", version, DeferralPolicy.model_json_schema())


def _titled(name: str, version: int, schema: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": _DIALECT, "$id": f"urn:ih-grpo:{name}:{version}", "title": name} | {
        key: value for key, value in schema.items() if key != "title"
    }


SCHEMAS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "executed_tools-1.json": executed_tools,
    f"deferral-{DeferralPolicy.model_fields['schema_version'].default}.json": deferral,
}
"""File name and schema of each."""
