"""Builds the app: settings -> engine -> sandbox -> routes. All wiring of the server is here."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from service.api import chat, errors, models, ops
from service.api.admission import Admission
from service.api.auth import ApiKeys
from service.api.metrics import Metrics
from service.api.middleware import BodyLimit, RequestContext
from service.api.server import Server
from service.backend import Backend
from service.settings import Settings


def create_app_from(backend: Backend, settings: Settings) -> FastAPI:
    """The app around a backend. Its lifespan starts engine and sandbox, and stops them."""
    metrics = Metrics()
    admission = Admission(
        settings.max_concurrent_episodes, settings.max_queued_episodes, settings.queue_timeout_s
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        try:
            await backend.sandbox.start()
            await backend.engine.start()
            app.state.server = Server(backend, settings, admission, metrics, int(time.time()))
            yield
        finally:
            await backend.engine.stop()
            await backend.sandbox.stop()

    app = FastAPI(title="IH-GRPO", version=version("ih-grpo"), lifespan=lifespan)
    errors.install(app)
    for module in (chat, models, ops):
        app.include_router(module.router)
    # The last one added is the first that a request meets.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(ApiKeys, keys=settings.keys())
    app.add_middleware(RequestContext, metrics=metrics)
    return app
