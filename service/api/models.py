"""Routes that list models, and ``POST /admin/reload``, which loads new weights into the running engine."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import structlog
from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, ValidationError

from service.api.auth import require_admin
from service.api.errors import ApiError
from service.api.schemas import ModelList, ModelObject
from service.api.state import CurrentServer, Server
from service.common.json import Json, json_time
from service.deferral.policy import ASSISTANT_POLICY, DeferralPolicy
from service.engines.base import EngineError, Sampling
from service.engines.checkpoint import (
    DEMO_NOTICE,
    MANIFEST,
    CheckpointError,
    default_sampling,
    is_demo,
    verify,
)

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("", responses={200: {"model": ModelList}})
async def list_models(server: CurrentServer) -> Json:
    """List the served models, in one page."""
    names = server.model_names
    return {
        "object": "list",
        "data": [_model(server, name) for name in names],
        "first_id": names[0],
        "last_id": names[-1],
        "has_more": False,
    }


@router.get("/{model_id:path}", responses={200: {"model": ModelObject}})
async def retrieve_model(model_id: str, server: CurrentServer) -> Json:
    """Return one model with its context length and the deferral policy that it was trained with."""
    if not model_id:  # `/v1/models/`
        return await list_models(server)
    if model_id not in server.model_names:
        raise ApiError(404, f"The model '{model_id}' does not exist.", param="model", code="model_not_found")
    return _model(server, model_id)


def _model(server: Server, name: str) -> Json:
    """Return a model with the fields of OpenAI's and of Anthropic's API."""
    return {
        "id": name,
        "object": "model",
        "created": server.started_at,
        "owned_by": "ih-grpo",
        "type": "model",
        "display_name": name,
        "created_at": json_time(server.started_at),
        "lifecycle": "active",
        "max_input_tokens": server.engine.context_length,
        "context_length": server.engine.context_length,
        "deferral": server.runner.policy.model_dump(),
        "notice": server.notice,
    }


admin_router = APIRouter(prefix="/admin", tags=["Operations"], dependencies=[Depends(require_admin)])
_log = structlog.get_logger(__name__)


class ReloadRequest(BaseModel):
    """Checkpoint to load."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """Directory of a complete checkpoint of the same architecture below the setting ``reload_root``, absolute
    or relative to it."""


@runtime_checkable
class _Reloadable(Protocol):
    async def load_weights(self, source: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    path: Path
    policy: DeferralPolicy
    sampling: Sampling


@admin_router.post("/reload")
async def reload(body: ReloadRequest, server: CurrentServer) -> Json:
    """Serve another checkpoint of the same model. All weights change together, between two decoding steps.

    Running episodes continue with the new weights and keep their limits. If the checkpoint is invalid, the
    old weights stay in use.
    """
    engine = server.engine
    if not isinstance(engine, _Reloadable):
        raise ApiError(
            501, "This engine can't load weights from files: use its own weight-update routes, or restart."
        )
    if server.reloading.locked():
        raise ApiError(409, "Another reload is in progress.", code="reload_in_progress", retry_after_s=5)
    began = time.monotonic()
    async with server.reloading:
        checkpoint = await asyncio.to_thread(_read, server, body.model)
        try:
            await engine.load_weights(checkpoint.path)
        except EngineError as error:
            raise _invalid_checkpoint(str(error)) from error
        server.runner = replace(server.runner, policy=checkpoint.policy, sampling=checkpoint.sampling)
        server.notice = DEMO_NOTICE if is_demo(str(checkpoint.path)) else None
    seconds = round(time.monotonic() - began, 3)
    _log.info("weights_reloaded", checkpoint=str(checkpoint.path), seconds=seconds)
    return {
        "object": "reload",
        "model": server.model_name,
        "checkpoint": str(checkpoint.path),
        "deferral": checkpoint.policy.model_dump(),
        "seconds": seconds,
    }


def _read(server: Server, model: str) -> _Checkpoint:
    """Read a checkpoint's files other than its weights.

    Raises:
        ApiError: the checkpoint is not allowed, missing or invalid.
    """
    root = server.settings.reload_root
    if root is None:
        raise ApiError(
            403,
            "Reloading is disabled: the operator must set reload_root to a directory of checkpoints.",
            code="reload_disabled",
        )
    path = (root / model).resolve() if "\0" not in model else root
    # The existence of paths outside of the root is not revealed.
    if not path.is_relative_to(root.resolve()):
        raise ApiError(403, "'model' is not below reload_root.", param="model", code="checkpoint_not_allowed")
    if not (path / "config.json").is_file():
        raise _invalid_checkpoint("config.json is missing", status=404)
    try:
        if (path / MANIFEST).is_file():
            verify(path)
        policy = DeferralPolicy.load(path, default=ASSISTANT_POLICY)
        sampling = default_sampling(path)
    except ValidationError as error:
        raise _invalid_checkpoint(f"deferral.json is invalid: {error.errors()[0]['msg']}") from None
    except (CheckpointError, OSError, ValueError) as error:
        raise _invalid_checkpoint(str(error)) from None
    return _Checkpoint(path, policy, sampling)


def _invalid_checkpoint(why: str, *, status: int = 400) -> ApiError:
    return ApiError(
        status,
        f"The checkpoint can't be loaded and the old weights stay in use: {why}.",
        param="model",
        code="invalid_checkpoint",
    )
