"""For the operator: is it alive, is it ready, what has it done."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.server import CurrentServer

router = APIRouter(tags=["Operations"])


@router.get("/health")
async def health() -> dict[str, str]:
    """The process answers. The one route that needs no key."""
    return {"status": "ok"}


@router.get("/ready", response_class=JSONResponse)
async def ready(server: CurrentServer) -> JSONResponse:
    """Whether engine and sandbox can serve; 503 tells which one can't."""
    parts = {"engine": server.backend.engine.healthy, "sandbox": await server.backend.sandbox.ready()}
    is_ready = all(parts.values())
    told = {name: "ready" if part else "not ready" for name, part in parts.items()}
    return JSONResponse({"status": "ready" if is_ready else "not ready", **told}, 200 if is_ready else 503)


@router.get("/metrics")
async def metrics(server: CurrentServer) -> Response:
    """Prometheus metrics."""
    server.metrics.running.set(server.admission.running)
    server.metrics.waiting.set(server.admission.waiting)
    return Response(server.metrics.render(), media_type=CONTENT_TYPE_LATEST)
