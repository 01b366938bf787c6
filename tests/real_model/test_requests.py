"""Ordinary requests to a real model: chat stays chat, shown code is not run, computed answers come from code.

Set ``IHGRPO_REAL_MODEL`` to the directory of a Qwen checkpoint without ``deferral.json`` (the targets are for
Qwen2.5-Coder-0.5B-Instruct), and ``IHGRPO_REAL_MODEL_URL`` to a server of it, if one is running.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.server.app import create_app
from service.server.settings import Settings
from tests.real_model.judge import Request, Verdict, judge, load
from tests.support.serving import serve

MODEL = os.environ.get("IHGRPO_REAL_MODEL", "")
URL = os.environ.get("IHGRPO_REAL_MODEL_URL")
pytestmark = [
    pytest.mark.long,
    pytest.mark.docker,
    pytest.mark.timeout(3 * 3600),
    pytest.mark.skipif(
        not URL and not Path(MODEL, "config.json").is_file(), reason="IHGRPO_REAL_MODEL is not set"
    ),
]


@asynccontextmanager
async def server(tmp_path: Path) -> AsyncGenerator[str, None]:
    if URL:
        yield URL.rstrip("/").removesuffix("/v1")
        return
    settings = Settings(
        model=MODEL,
        sandbox="in-process",
        port=0,
        store_url=f"sqlite:///{tmp_path}/store.db",
        max_context=4096,
    )
    async with serve(create_app(settings)) as served:
        yield served.url


async def replies(url: str, requests: list[Request], **fields: Any) -> list[tuple[Request, Verdict]]:
    slots = asyncio.Semaphore(8)
    async with httpx.AsyncClient(base_url=url, timeout=3600) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]

        async def ask(request: Request) -> tuple[Request, Verdict]:
            body = {
                "model": model,
                "messages": request.messages,
                "temperature": 0,
                "max_tokens": 512,
                **fields,
            }
            async with slots:
                reply = await client.post("/v1/chat/completions", json=body)
            return request, judge(request, reply.raise_for_status().json()["choices"][0]["message"])

        return await asyncio.gather(*map(ask, requests))


async def test_ordinary_requests(tmp_path: Path) -> None:
    requests = load()
    async with server(tmp_path) as url:
        served = await replies(url, requests)
        computing = [request for request in requests if request.needs_execution]
        plain = await replies(url, computing, deferral={"enabled": False})
    others = [verdict for request, verdict in served if not request.needs_execution]
    unneeded = [request.id for request, verdict in served if verdict.unneeded_execution]
    assert len(unneeded) <= 0.05 * len(others), unneeded
    assert not [request.id for request, verdict in served if verdict.pending_code]
    assert not [request.id for request, verdict in served if verdict.empty]
    right = sum(bool(verdict.right) for _, verdict in served)
    assert right > sum(bool(verdict.right) for _, verdict in plain)
