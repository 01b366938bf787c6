"""Backends of the hostile suite, each with one pool for all cases, and the table of results for docs/reference/hostile-code.md."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
import pytest_asyncio

from service.sandbox.base import SandboxError, Session, SessionLimits
from service.sandbox.bubblewrap.sandbox import ProcessSandbox, ProcessSandboxSettings
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings
from service.sandbox.pooled_sandbox import PooledSandbox
from service.sandbox.settings import PoolSettings

from .cases import CASES

BACKENDS = {"docker": "runc", "process": "bubblewrap", "runsc": "runsc"}
"""Names of the backends, and their names in the table."""
RUNSC = "IHGRPO_RUNSC_DOCKER_HOST"
"""Variable with the address of a daemon that has the runtime runsc, if the default one has not."""


@pytest.fixture(scope="session")
def table() -> Iterator[dict[str, str]]:
    """Results by case, written to the file that IHGRPO_HOSTILE_TABLE names."""
    outcomes: dict[str, str] = {}
    yield outcomes
    if path := os.environ.get("IHGRPO_HOSTILE_TABLE"):
        Path(path).write_text(render(outcomes))


def render(outcomes: dict[str, str]) -> str:
    lines = [
        "# Hostile-code tests",
        "",
        "Written by the test suite: `IHGRPO_HOSTILE_TABLE=docs/reference/hostile-code.md pytest tests/hostile`. "
        "After each case,",
        "the tests check that the next call of the same tenant and of another tenant return correct results, and that "
        "no process",
        "or file is left. The cases with several calls or tenants (64 to 68, 75 and 76) are in "
        "`tests/hostile/test_tenants.py`.",
        "",
        f"The grace period was the default of {PoolSettings().grace_s:g} s, so an answer must arrive within 2 s after the "
        "deadline.",
        "",
        *(f"- {text}" for key, text in sorted(outcomes.items()) if key.startswith("note ")),
        "",
        "| case | what the code does | runc | bubblewrap | runsc |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        results = [
            "**not held**" if name in case.not_held_on else outcomes.get(f"{name} {case.id}", "not run")
            for name in BACKENDS
        ]
        lines.append(f"| {case.id} | {case.title} | {' | '.join(results)} |")
    return "\n".join(lines) + "\n"


@dataclass
class Backend:
    name: str
    sandbox: PooledSandbox
    neighbour: Session
    """Another tenant, whose calls must stay correct during every case."""
    latest_s: float = -math.inf
    """Longest time from a deadline to its answer, in seconds."""


def make(name: str, settings: DockerSandboxSettings) -> PooledSandbox:
    """Return the backend, with the default grace, which is longer in the settings of the other tests."""
    settings = settings.model_copy(update={"grace_s": PoolSettings().grace_s})
    if name == "process":
        shared = settings.model_dump(include=set(PoolSettings.model_fields))
        return ProcessSandbox(ProcessSandboxSettings(**shared))
    if name == "runsc":
        settings = settings.model_copy(
            update={"runtime": name, "docker_host": os.environ.get(RUNSC, settings.docker_host)}
        )
    return DockerSandbox(settings)


def missing(name: str, settings: DockerSandboxSettings) -> str | None:
    """Return the reason why the backend is unavailable on this machine, or None."""
    if name == "process" and shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    if name == "runsc":
        host = os.environ.get(RUNSC, settings.docker_host)
        with contextlib.closing(docker.APIClient(base_url=host, version="auto")) as client:
            if name not in client.info()["Runtimes"]:
                return f"the daemon at {host} has no runtime runsc ({RUNSC} may name another one)"
    return None


@pytest_asyncio.fixture(
    scope="session",
    loop_scope="session",
    params=[
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("process", marks=pytest.mark.slow),
        pytest.param("runsc", marks=[pytest.mark.docker, pytest.mark.slow]),
    ],
)
async def backend(
    request: pytest.FixtureRequest, docker_sandbox_settings: DockerSandboxSettings, table: dict[str, str]
) -> AsyncGenerator[Backend]:
    if reason := missing(request.param, docker_sandbox_settings):
        pytest.skip(reason)
    sandbox = make(request.param, docker_sandbox_settings)
    try:
        await sandbox.start()
    except SandboxError as error:
        if request.param != "runsc":
            raise
        # Expected: a runtime that fails the isolation checks is not used, and there is no fallback.
        table["note runsc"] = f"runsc: rejected at its start, so no case was run. {error}"
        pytest.skip(f"rejected at its start: {error}")
    neighbour = sandbox.session(SessionLimits(run_limit_s=20))
    await neighbour.invoke("secret = 42")
    assert (await neighbour.flush()).status == "ok"
    backend = Backend(request.param, sandbox, neighbour)
    yield backend
    table[f"note {request.param}"] = (
        f"{BACKENDS[request.param]}: the latest answer came {backend.latest_s:.1f} s after its deadline."
    )
    await neighbour.close()
    await sandbox.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sandbox(docker_sandbox_settings: DockerSandboxSettings) -> AsyncGenerator[PooledSandbox]:
    sandbox = make("docker", docker_sandbox_settings)
    await sandbox.start()
    yield sandbox
    await sandbox.stop()
