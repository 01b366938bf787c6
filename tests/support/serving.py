"""A real HTTP server in the test's event loop, around a scripted engine and sandbox."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai
import uvicorn
from fastapi import FastAPI

from service.deferral.policy import DeferralPolicy
from service.engines.base import Engine, Sampling
from service.episode.runner import EpisodeRunner
from service.sandbox.base import Sandbox
from service.server.app import create_app_from
from service.server.run import Http1Protocol
from service.server.settings import Settings


def settings(**overrides: object) -> Settings:
    """Settings that do not depend on files or the environment."""
    return Settings(**{"sandbox": "in-process", "port": 0, "store_url": "sqlite://", **overrides})  # type: ignore[arg-type]


def make_app(
    engine: Engine, sandbox: Sandbox, policy: DeferralPolicy | None = None, **options: object
) -> FastAPI:
    """Create the app around ``engine`` and ``sandbox``; ``options`` are settings."""
    return create_app_from(
        EpisodeRunner(engine, sandbox, policy or DeferralPolicy(), Sampling()), settings(**options)
    )


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    url: str
    openai: openai.AsyncOpenAI
    app: FastAPI


@asynccontextmanager
async def serve(app: FastAPI, key: str = "none") -> AsyncGenerator[Served, None]:
    """Serve ``app`` on a free loopback port; the SDK's client does not retry."""
    # Without IPPROTO_TCP, asyncio would not disable Nagle's algorithm, which costs 40 ms per request.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, http=Http1Protocol, log_level="warning", log_config=None))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            if task.done():
                await task
            await asyncio.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # Loading certificates takes a third of a second, and there is no TLS.
        plain = openai.DefaultAsyncHttpxClient(verify=False)
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=plain)
        try:
            yield Served(url, client, app)
        finally:
            await client.close()
            server.should_exit = True
            await task


async def ask(served: Served, **more: Any) -> str:
    """The model's greedy reply, without code, to one fixed question."""
    reply = await served.openai.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "What is 12 + 30?"}],
        temperature=0,
        max_tokens=24,
        extra_body={"deferral": {"enabled": False}},
        **more,
    )
    return reply.choices[0].message.content or ""
