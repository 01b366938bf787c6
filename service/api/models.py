"""``GET /v1/models``."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.errors import ApiError
from service.api.server import CurrentServer, Server
from service.api.wire import Json

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("")
async def list_models(server: CurrentServer) -> Json:
    """The models that this server has."""
    return {"object": "list", "data": [_model(server)]}


@router.get("/{model_id:path}")
async def retrieve_model(model_id: str, server: CurrentServer) -> Json:
    """One model, with its context length and the deferral policy that it was trained with."""
    if model_id != server.model_name:
        raise ApiError(404, f"The model '{model_id}' does not exist.", param="model", code="model_not_found")
    return _model(server)


def _model(server: Server) -> Json:
    return {
        "id": server.model_name,
        "object": "model",
        "created": server.started_at,
        "owned_by": "ih-grpo",
        "context_length": server.backend.engine.context_length,
        "deferral": server.backend.policy.model_dump(),
    }
