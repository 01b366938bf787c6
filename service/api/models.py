"""``GET /v1/models``."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.documented import ModelList, ModelObject
from service.api.errors import ApiError
from service.api.server import CurrentServer, Server
from service.api.wire import Json

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("", responses={200: {"model": ModelList}})
async def list_models(server: CurrentServer) -> Json:
    """The models that this server has."""
    return {"object": "list", "data": [_model(server, name) for name in server.model_names]}


@router.get("/{model_id:path}", responses={200: {"model": ModelObject}})
async def retrieve_model(model_id: str, server: CurrentServer) -> Json:
    """One model, with its context length and the deferral policy that it was trained with."""
    if not model_id:  # `/v1/models/`
        return await list_models(server)
    if model_id not in server.model_names:
        raise ApiError(404, f"The model '{model_id}' does not exist.", param="model", code="model_not_found")
    return _model(server, model_id)


def _model(server: Server, name: str) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": server.started_at,
        "owned_by": "ih-grpo",
        "context_length": server.backend.engine.context_length,
        "deferral": server.backend.policy.model_dump(),
        "notice": server.notice,
    }
