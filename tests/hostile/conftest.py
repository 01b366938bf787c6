"""One pool for the whole suite: a hostile tenant, a neighbour, and a look at what is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from service.sandbox.base import Session, SessionLimits
from service.sandbox.docker import DockerSandbox, DockerSandboxSettings
from service.sandbox.pool_settings import PoolSettings
from service.sandbox.pooled import PooledSandbox
from service.sandbox.process import ProcessSandbox, ProcessSandboxSettings

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
        "| case | what the code does | in a container | under bubblewrap |",
        "| --- | --- | --- | --- |",
    ]
    for case in CASES:
        told = [outcomes.get(f"{name} {case.id}", "not run") for name in ("docker", "process")]
        if case.docker_only:
            told[1] = "**not held**"
        lines.append(f"| {case.id} | {case.title} | {told[0]} | {told[1]} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Backend:
    name: str
    sandbox: PooledSandbox
    neighbour: Session
    """Another tenant, whose calls must stay right whatever happens next door."""


def make(name: str, settings: DockerSandboxSettings) -> PooledSandbox:
    if name == "docker":
        return DockerSandbox(settings)
    shared = settings.model_dump(include=set(PoolSettings.model_fields))
    return ProcessSandbox(ProcessSandboxSettings(**shared))


@pytest_asyncio.fixture(
    scope="session",
    loop_scope="session",
    params=[
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("process", marks=pytest.mark.slow),
    ],
)
async def backend(
    request: pytest.FixtureRequest, docker_sandbox_settings: DockerSandboxSettings
) -> AsyncGenerator[Backend]:
    if request.param == "process" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    sandbox = make(request.param, docker_sandbox_settings)
    await sandbox.start()
    neighbour = sandbox.session(SessionLimits(run_limit_s=20))
    await neighbour.invoke("secret = 42")
    assert (await neighbour.flush()).status == "ok"
    yield Backend(request.param, sandbox, neighbour)
    await neighbour.close()
    await sandbox.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sandbox(docker_sandbox_settings: DockerSandboxSettings) -> AsyncGenerator[DockerSandbox]:
    sandbox = DockerSandbox(docker_sandbox_settings)
    await sandbox.start()
    yield sandbox
    await sandbox.stop()
