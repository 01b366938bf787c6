"""Builds the app: settings -> engine -> sandbox -> routes. All wiring of the server is here."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI

from service.api import chat, errors, models, ops, reload
from service.api.admission import Admission
from service.api.auth import ApiKeys
from service.api.metrics import Metrics
from service.api.middleware import BodyLimit, RequestContext
from service.api.server import Server
from service.backend import Backend
from service.checkpoint import default_sampling, locate
from service.deferral.policy import DeferralPolicy
from service.engines.base import Engine
from service.playground.files import Playground
from service.sandbox.base import Sandbox
from service.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """The app that ``settings`` describe; by default those of the environment.

    Raises:
        ValueError: a setting, or what it names, is not right; the message says which.
        EngineError: the checkpoint can't be served.
    """
    settings = settings or Settings()
    model_dir = locate(settings.model)
    policy = DeferralPolicy.load(model_dir)
    backend = Backend(
        engine=_engine(settings, model_dir),
        sandbox=_sandbox(settings, policy),
        policy=policy,
        sampling=default_sampling(model_dir),
    )
    return create_app_from(backend, settings)


def _engine(settings: Settings, model_dir: Path) -> Engine:
    from service.engines.settings import EngineSettings
    from service.engines.transformers import TransformersEngine  # torch is imported here

    # A hub id is the name that clients know a model by; of a directory it is the last part.
    name = Path(settings.model).name if Path(settings.model).exists() else settings.model
    return TransformersEngine(
        EngineSettings(
            model=str(model_dir),
            model_name=settings.served_model_name or name,
            device=settings.device,
            dtype=settings.dtype,
            max_slots=settings.max_slots,
            max_context=settings.max_context,
        )
    )


def _sandbox(settings: Settings, policy: DeferralPolicy) -> Sandbox:
    if settings.sandbox == "runner":
        from service.sandbox.client import RunnerClient, RunnerClientSettings
        from service.sandbox.runner_settings import read_token

        token = read_token(settings.runner_token_file)
        return RunnerClient(RunnerClientSettings(address=settings.runner_url, token=token))
    from service.sandbox.docker import DockerSandbox
    from service.sandbox.docker_settings import DockerSandboxSettings

    return DockerSandbox(
        DockerSandboxSettings(
            image=settings.sandbox_image,
            # Two servers on one machine must not take each other's containers for orphans.
            instance=f"{os.uname().nodename}-api-{settings.port or os.getpid()}",
            pool_size=min(settings.warm_containers, settings.max_containers),
            max_containers=settings.max_containers,
            # Requests are held to lower ceilings already; the proofs of isolation need their time.
            run_limit_ceiling_s=max(30.0, settings.run_limit_s or policy.run_limit_s),
        )
    )


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
        except BaseException as error:
            app.state.failure = error  # whoever runs the server tells it better than a traceback
            await _stop(backend)
            raise
        app.state.server = Server(backend, settings, admission, metrics, int(time.time()))
        try:
            yield
        finally:
            await _stop(backend)

    app = FastAPI(title="IH-GRPO", version=version("ih-grpo"), lifespan=lifespan)
    errors.install(app)
    for module in (chat, models, ops, reload):
        app.include_router(module.router)
    # The last one added is the first that a request meets.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(ApiKeys, keys=settings.keys())
    app.add_middleware(Playground)  # before the keys: a page can be opened without one
    app.add_middleware(RequestContext, metrics=metrics)
    return app


async def _stop(backend: Backend) -> None:
    try:
        await backend.engine.stop()
    finally:
        await backend.sandbox.stop()
