"""One pool for the whole suite: a hostile tenant, a neighbour, and a look at what is left."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from service.sandbox.base import Session, SessionLimits
from service.sandbox.docker import DockerSandbox, DockerSandboxSettings


@pytest.fixture(scope="session", params=["runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
