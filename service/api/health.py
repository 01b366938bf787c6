"""Routes for operators: liveness, readiness and metrics; and the API documentation at ``/docs``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp

from service.api.schemas import METRICS, READINESS
from service.api.state import CurrentServer
from service.playground.files import HEADERS, StaticPages, read_file

router = APIRouter(tags=["Operations"])
open_router = APIRouter(tags=["Operations"])
"""Routes that need no key."""


@open_router.get("/health")
async def health() -> dict[str, str]:
    """Report that the process is alive. Needs no key."""
    return {"status": "ok"}


@open_router.get("/ready", response_class=JSONResponse, responses=READINESS)
async def ready(request: Request, server: CurrentServer) -> JSONResponse:
    """Report whether new requests are accepted. Needs no key; with one, it lists the state of each part."""
    parts = {"engine": server.engine.healthy, "sandbox": await server.runner.sandbox.ready()}
    is_ready = all(parts.values()) and not server.drain.draining
    states = {name: "ready" if part else "not ready" for name, part in parts.items()}
    status = "going down" if server.drain.draining else "ready" if is_ready else "not ready"
    details = {} if request.scope.get("anonymous") else states
    return JSONResponse({"status": status, **details}, 200 if is_ready else 503)


@router.get("/metrics", response_class=Response, responses=METRICS)
async def metrics(server: CurrentServer) -> Response:
    """Prometheus metrics."""
    text = server.metrics.render(
        running=server.admission.running,
        waiting=server.admission.waiting,
        engine=server.engine.stats(),
    )
    return Response(text, media_type=CONTENT_TYPE_LATEST)


FOLDER: Final = Path(__file__).parent / "swagger_ui"
# Swagger UI creates markup from text and sets inline styles. It shows only this server's own document.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES: Final = ("initializer.js", "swagger-ui-bundle.js", "swagger-ui.css")


class ApiDocs(StaticPages):
    """Swagger UI at ``/docs``, from files of this package, so it works offline. It needs no key."""

    def __init__(self, app: ASGIApp) -> None:
        files = {f"/docs/{name}": read_file(FOLDER / name) for name in _FILES}
        files["/docs"] = read_file(FOLDER / "index.html")
        super().__init__(app, files, {**HEADERS, "Content-Security-Policy": POLICY})
