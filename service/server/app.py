"""The application factory: wires settings, engine, sandbox, middleware and routes together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Security
from starlette.middleware.cors import CORSMiddleware

from service.api import completions, errors, health, models, tokenize
from service.api import usage as usage_api
from service.api.audit import Audit
from service.api.auth import BEARER, ApiKeys
from service.api.chat import route as chat
from service.api.chat.suspension import Suspensions
from service.api.files import container_route as containers_api
from service.api.files import route as files_api
from service.api.files.containers import Containers
from service.api.health import ApiDocs
from service.api.limits import Admission, Drain, Draining, KeyLimits, Quotas
from service.api.messages import route as messages
from service.api.middleware import (
    EXPOSED_HEADERS,
    BodyLimit,
    HeadAsGet,
    HostCheck,
    RequestContext,
    RequestDecoding,
)
from service.api.responses import route as responses_api
from service.api.responses.registry import Responses
from service.api.schemas import ERRORS
from service.api.seal import Seal
from service.api.state import Server
from service.api.telemetry.containers import ContainerCollector
from service.api.telemetry.metrics import Metrics
from service.api.telemetry.suspensions import SuspensionCollector
from service.api.telemetry.tracing import open_tracer
from service.deferral.policy import ASSISTANT_POLICY, DeferralPolicy
from service.engines.checkpoint import DEMO_NOTICE, default_sampling, is_demo
from service.engines.factory import make_engine
from service.engines.model_lookup import locate, locate_gguf
from service.episode.runner import EpisodeRunner
from service.playground.files import Playground
from service.sandbox.base import Sandbox
from service.sandbox.factory import SandboxOptions, create_sandbox, instance_name
from service.sandbox.runner.settings import TokenError
from service.server.settings import Settings
from service.store.blobs import open_blobs
from service.store.containers import ContainerStore
from service.store.files import FileStore
from service.store.usage import UsageStore


def create_app(settings: Settings | None = None, model_dir: Path | None = None) -> FastAPI:
    """Create the app from ``settings``, by default those of the environment.

    ``model_dir`` is the directory of the model, if it was located already.

    Raises:
        ValueError: a setting, or a file that it names, is invalid. The message names it.
        EngineError: the checkpoint can't be served.
    """
    settings = settings or Settings()
    model_dir = model_dir or locate_model(settings)
    policy = DeferralPolicy.load(model_dir, default=ASSISTANT_POLICY)
    runner = EpisodeRunner(
        engine=make_engine(settings.engine_settings(model_dir)),
        sandbox=_sandbox(settings, policy),
        policy=policy,
        sampling=default_sampling(model_dir),
    )
    return create_app_from(runner, settings)


def locate_model(settings: Settings) -> Path:
    """Return the directory of the configured model, or its GGUF file, downloading or merging it if needed.

    Raises:
        ValueError: the checkpoint does not exist; the message has a hint.
    """
    if settings.engine_kind == "gguf":
        return locate_gguf(settings.model)
    return locate(settings.model, weights=settings.engine_kind != "remote", base=settings.base)


def _sandbox(settings: Settings, policy: DeferralPolicy) -> Sandbox:
    try:
        return create_sandbox(
            SandboxOptions(
                kind=settings.sandbox_kind,
                pool_size=settings.warm_containers,
                max_containers=settings.max_containers,
                run_limit_s=settings.run_limit_s or policy.run_limit_s,
                image=settings.sandbox_image,
                instance=instance_name("api", settings.port or None),
                runner_addresses=settings.runner_url,
                runner_token_file=settings.runner_token_file,
                runner_tls=settings.runner_tls(),
                # A runner that starts together with this server needs time for its isolation checks.
                start_timeout_s=60.0,
            )
        )
    except TokenError as error:
        raise ValueError(
            f"{error}. `ih-grpo runner` needs the same token. To serve only this machine without a runner, "
            "use a loopback host and --sandbox in-process"
        ) from None


def create_app_from(runner: EpisodeRunner, settings: Settings) -> FastAPI:
    """The app around a runner. Its lifespan starts engine and sandbox, and stops them."""
    metrics, drain = Metrics(), Drain()
    tracer, close_tracer = open_tracer(settings.otel_endpoint, version("ih-grpo"))
    admission = Admission(
        settings.max_concurrent_episodes, settings.max_queued_episodes, settings.queue_timeout_s
    )

    responses = Responses(
        settings.store_url,
        days=settings.store_days,
        max_bytes=settings.store_max_bytes,
        max_background=settings.max_background_responses,
        drain=drain,
    )
    keys = settings.keys()
    usage = UsageStore(responses.store.engine, days=settings.usage_days)
    quotas = Quotas(usage, keys, settings.key_quota(), metrics)
    files = FileStore(
        responses.store.engine,
        open_blobs(settings.files_location),
        max_file_bytes=settings.max_file_bytes,
        max_owner_bytes=settings.key_files_bytes,
        quota_of=quotas.stored_bytes_of,
        keep_days=settings.files_days,
    )
    container_store = ContainerStore(files, keep_days=settings.container_files_days)
    containers = Containers(runner.sandbox, container_store, files, settings.container_limits(), quotas)
    suspensions = Suspensions(settings.suspension_limits())
    metrics.registry.register(ContainerCollector(containers.counts, files.counts))
    metrics.registry.register(SuspensionCollector(suspensions.counts))
    audit_log = settings.audit_log()
    responses.cleaners += [files.clean, container_store.clean, containers.end_deleted, usage.clean]
    if audit_log is not None:
        responses.cleaners.append(audit_log.clean)
    seal = Seal(settings.seals())
    mcp = settings.mcp_hub()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        try:
            metrics.watch(runner.sandbox)
            await responses.start()
            await runner.sandbox.start()
            await containers.start()
            await suspensions.start()
            await runner.engine.start()
        except BaseException as error:
            app.state.failure = error  # serve_forever reports it without a traceback
            await _stop(responses, containers, suspensions, runner, quotas)
            raise
        app.state.server = Server(
            runner,
            settings.api_settings(),
            admission,
            metrics,
            quotas,
            int(time.time()),
            tracer=tracer,
            drain=drain,
            seal=seal,
            mcp=mcp,
        )
        if audit_log is not None:
            audit_log.record("server.start", keys=[key.name for key in keys])
        if is_demo(settings.model):
            app.state.server.notice = DEMO_NOTICE
        try:
            yield
        finally:
            await _stop(responses, containers, suspensions, runner, quotas)
            await mcp.stop()
            await asyncio.to_thread(close_tracer)  # sends the remaining spans

    app = FastAPI(
        title="IH-GRPO",
        summary="An OpenAI-compatible API whose model decides when its code runs.",
        version=version("ih-grpo"),
        lifespan=lifespan,
        responses=ERRORS,
        docs_url=None,  # see ApiDocs; FastAPI's own pages load their scripts from another host
        redoc_url=None,
    )
    app.state.drain = drain
    app.state.responses = responses
    app.state.files = files
    app.state.containers = containers
    app.state.suspensions = suspensions
    errors.install(app)
    for router in (
        chat.router,
        completions.router,
        messages.router,
        responses_api.router,
        responses_api.stored_router,
        files_api.router,
        containers_api.router,
        tokenize.router,
        usage_api.router,
        usage_api.admin_router,
        models.router,
        health.router,
        models.admin_router,
    ):
        app.include_router(router, dependencies=[Security(BEARER)])
    app.include_router(health.open_router)
    # The middleware that is added last handles a request first.
    app.add_middleware(RequestDecoding, max_bytes=settings.max_body_bytes)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, max_file_bytes=settings.max_file_bytes)
    if keys:
        app.add_middleware(
            KeyLimits,
            metrics=metrics,
            requests_per_minute=settings.key_requests_per_minute,
            concurrency=settings.key_concurrency,
        )
    app.add_middleware(Draining, drain=drain)
    if keys:
        app.add_middleware(ApiKeys, keys=keys)
    app.add_middleware(ApiDocs)  # these two before the keys: the pages can be opened without one
    app.add_middleware(Playground)
    if settings.is_open_locally:
        app.add_middleware(HostCheck, allowed=settings.allowed_hosts)
    if audit_log is not None:
        app.add_middleware(Audit, log=audit_log)
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


async def _stop(
    responses: Responses,
    containers: Containers,
    suspensions: Suspensions,
    runner: EpisodeRunner,
    quotas: Quotas,
) -> None:
    async with AsyncExitStack() as stack:  # in reverse order, even if one of them fails
        stack.push_async_callback(runner.sandbox.stop)
        stack.push_async_callback(runner.engine.stop)
        stack.push_async_callback(responses.stop)
        stack.push_async_callback(quotas.stop)
        stack.push_async_callback(containers.stop)
        stack.push_async_callback(suspensions.stop)
