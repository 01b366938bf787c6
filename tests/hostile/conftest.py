"""One pool for the whole suite: a hostile tenant, a neighbour, and a look at what is left."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from service.sandbox.base import Session, SessionLimits
from service.sandbox.docker import DockerSandbox, DockerSandboxSettings

from .cases import CASES


@pytest.fixture(scope="session")
def table() -> Iterator[dict[str, str]]:
    """Outcome of each case; written to the file that IHGRPO_HOSTILE_TABLE names, for docs/hostile.md."""
    outcomes: dict[str, str] = {}
    yield outcomes
    if path := os.environ.get("IHGRPO_HOSTILE_TABLE"):
        Path(path).write_text(render(outcomes))


def render(outcomes: dict[str, str]) -> str:
    lines = [
        "# Hostile code, case by case",
        "",
        "Written by the suite itself: `IHGRPO_HOSTILE_TABLE=docs/hostile.md pytest tests/hostile`. After each case",
        "the same tenant's next call and another tenant's next call were right, and no process or file was left.",
        "The cases of several calls or tenants (64 to 68) are the tests of `tests/hostile/test_tenants.py`.",
        "",
        "| case | what the code does | what came of it |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {case.id} | {case.title} | {outcomes.get(case.id, 'not run')} |" for case in CASES]
    return "\n".join(lines) + "\n"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sandbox(docker_sandbox_settings: DockerSandboxSettings) -> AsyncGenerator[DockerSandbox]:
    sandbox = DockerSandbox(docker_sandbox_settings)
    await sandbox.start()
    yield sandbox
    await sandbox.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def neighbour(sandbox: DockerSandbox) -> AsyncGenerator[Session]:
    """Another tenant, whose calls must stay right whatever happens next door."""
    session = sandbox.session(SessionLimits(run_limit_s=20))
    await session.invoke("import random\nsecret = 42\nrandom.seed(7)\nfirst = random.random()")
    assert (await session.flush()).status == "ok"
    yield session
    await session.close()
