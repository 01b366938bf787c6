"""Builds the app: settings -> engine -> sandbox -> routes. All wiring of the server is here."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Security
from starlette.middleware.cors import CORSMiddleware

from service.api import completions, errors, health, models, tokenize
from service.api.auth import BEARER, ApiKeys, HostCheck
from service.api.chat import route as chat
from service.api.health import ApiDocs
from service.api.limits import Admission, Drain, Draining, KeyLimits
from service.api.middleware import EXPOSED_HEADERS, BodyLimit, HeadAsGet, RequestContext, RequestDecoding
from service.api.responses import route as responses_api
from service.api.responses.registry import Responses
from service.api.responses.seal import Seal
from service.api.schemas import ERRORS
from service.api.state import Server
from service.api.telemetry.metrics import Metrics
from service.api.telemetry.tracing import open_tracer
from service.deferral.policy import ASSISTANT_POLICY, DeferralPolicy
from service.engines.checkpoint import DEMO_NOTICE, default_sampling, is_demo, locate
from service.engines.factory import engine_kind, make_engine
from service.episode.runner import EpisodeRunner
from service.playground.files import Playground
from service.sandbox.base import Sandbox
from service.server.settings import Settings


def create_app(settings: Settings | None = None, model_dir: Path | None = None) -> FastAPI:
    """The app that ``settings`` describe; by default those of the environment.

    ``model_dir`` is the directory of their model if it was located already.

    Raises:
        ValueError: a setting, or what it names, is not right; the message says which.
        EngineError: the checkpoint can't be served.
    """
    settings = settings or Settings()
    model_dir = model_dir or locate_model(settings)
    policy = DeferralPolicy.load(model_dir, default=ASSISTANT_POLICY)
    runner = EpisodeRunner(
        engine=make_engine(settings, model_dir),
        sandbox=_sandbox(settings, policy),
        policy=policy,
        sampling=default_sampling(model_dir),
    )
    return create_app_from(runner, settings)


def locate_model(settings: Settings) -> Path:
    """The directory of the settings' model, downloaded or merged if needed.

    Raises:
        ValueError: there is no such checkpoint, with a hint.
    """
    return locate(settings.model, weights=engine_kind(settings) != "remote", base=settings.base)


def _sandbox(settings: Settings, policy: DeferralPolicy) -> Sandbox:
    if settings.sandbox_kind == "runner":
        from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
        from service.sandbox.runner.settings import read_token

        try:
            token = read_token(settings.runner_token_file)
        except ValueError as error:
            raise ValueError(
                f"{error}. `ih-grpo runner` needs the same token. To serve this machine alone, without a "
                "runner: a loopback host and --sandbox in-process"
            ) from None
        # Started together with this server, a runner needs a while to prove its isolation.
        return RunnerClient(
            RunnerClientSettings(address=settings.runner_url, token=token, start_timeout_s=60.0)
        )
    pool: dict[str, Any] = {
        "pool_size": min(settings.warm_containers, settings.max_containers),
        "max_containers": settings.max_containers,
        # Requests are held to lower ceilings already; the proofs of isolation need their time.
        "run_limit_ceiling_s": max(30.0, settings.run_limit_s or policy.run_limit_s),
    }
    if settings.sandbox_kind == "process":
        from service.sandbox.bubblewrap.sandbox import ProcessSandbox, ProcessSandboxSettings

        return ProcessSandbox(ProcessSandboxSettings(**pool))
    from service.sandbox.docker.sandbox import DockerSandbox
    from service.sandbox.docker.settings import DockerSandboxSettings

    # Two servers on one machine must not take each other's containers for orphans.
    instance = f"{os.uname().nodename}-api-{settings.port or os.getpid()}"
    return DockerSandbox(DockerSandboxSettings(**pool, image=settings.sandbox_image, instance=instance))


def create_app_from(runner: EpisodeRunner, settings: Settings) -> FastAPI:
    """The app around a runner. Its lifespan starts engine and sandbox, and stops them."""
    metrics, drain = Metrics(), Drain()
    tracer, close_tracer = open_tracer(settings.otel_endpoint, version("ih-grpo"))
    admission = Admission(
        settings.max_concurrent_episodes, settings.max_queued_episodes, settings.queue_timeout_s
    )

    responses, seal = Responses(settings, drain), Seal(settings.seals())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        try:
            await responses.start()
            await runner.sandbox.start()
            await runner.engine.start()
        except BaseException as error:
            app.state.failure = error  # whoever runs the server tells it better than a traceback
            await _stop(responses, runner)
            raise
        app.state.server = Server(
            runner, settings, admission, metrics, int(time.time()), tracer=tracer, drain=drain, seal=seal
        )
        if is_demo(settings.model):
            app.state.server.notice = DEMO_NOTICE
        try:
            yield
        finally:
            await _stop(responses, runner)
            await asyncio.to_thread(close_tracer)  # it sends what is left

    app = FastAPI(
        title="IH-GRPO",
        summary="An OpenAI-compatible API whose model decides itself when its code runs.",
        version=version("ih-grpo"),
        lifespan=lifespan,
        responses=ERRORS,
        docs_url=None,  # see ApiDocs; FastAPI's own pages load their scripts from another host
        redoc_url=None,
    )
    app.state.drain = drain
    app.state.responses = responses
    errors.install(app)
    for router in (
        chat.router,
        completions.router,
        responses_api.router,
        responses_api.stored_router,
        tokenize.router,
        models.router,
        health.router,
        models.admin_router,
    ):
        app.include_router(router, dependencies=[Security(BEARER)])
    app.include_router(health.open_router)
    # The last one added is the first that a request meets.
    app.add_middleware(RequestDecoding, max_bytes=settings.max_body_bytes)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(
        KeyLimits,
        metrics=metrics,
        requests_per_minute=settings.key_requests_per_minute,
        concurrency=settings.key_concurrency,
    )
    app.add_middleware(Draining, drain=drain)
    app.add_middleware(ApiKeys, keys=settings.keys())
    app.add_middleware(ApiDocs)  # these two before the keys: a page can be opened without one
    app.add_middleware(Playground)
    if settings.is_open_locally:
        app.add_middleware(HostCheck, allowed=settings.allowed_hosts)
    app.add_middleware(RequestContext, metrics=metrics, strict_requests=settings.strict_requests)
    app.add_middleware(HeadAsGet)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=EXPOSED_HEADERS,
        )
    return app


async def _stop(responses: Responses, runner: EpisodeRunner) -> None:
    async with AsyncExitStack() as stack:  # the last one first, whatever the others do
        stack.push_async_callback(runner.sandbox.stop)
        stack.push_async_callback(runner.engine.stop)
        stack.push_async_callback(responses.stop)
