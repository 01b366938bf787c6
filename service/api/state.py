"""What the routes share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from opentelemetry.trace import NoOpTracer, Tracer

from service.api.errors import ApiError
from service.api.limits import Admission, Drain
from service.api.responses.seal import Seal
from service.api.telemetry.metrics import Metrics
from service.episode.runner import Backend
from service.server.settings import Settings


@dataclass(slots=True)
class Server:
    """One running server; on ``app.state.server`` from start to stop."""

    backend: Backend
    settings: Settings
    admission: Admission
    metrics: Metrics
    started_at: int
    """Unix time."""
    tracer: Tracer = field(default_factory=NoOpTracer)
    drain: Drain = field(default_factory=Drain)
    seal: Seal = field(default_factory=Seal)
    """Seals the thoughts that clients keep."""
    reloading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while new weights are read and taken."""
    notice: str | None = None
    """What whoever talks to the model should know; shown by the page and by ``ih-grpo chat``."""

    @property
    def model_name(self) -> str:
        """The name that clients ask for."""
        return self.backend.engine.model_name

    @property
    def model_names(self) -> tuple[str, ...]:
        """All names that clients may ask for: the model itself, then its adapters."""
        return (self.model_name, *self.backend.engine.adapters)

    def check_model(self, name: str) -> None:
        """Raise ApiError 404 unless clients may ask for ``name``."""
        if name not in self.model_names:
            known = ", ".join(repr(known) for known in self.model_names)
            message = f"The model '{name}' does not exist. This server has {known}."
            raise ApiError(404, message, param="model", code="model_not_found")


async def server_of(request: Request) -> Server:  # not async, it would be run in a thread
    server: Server = request.app.state.server
    return server


CurrentServer = Annotated[Server, Depends(server_of)]
