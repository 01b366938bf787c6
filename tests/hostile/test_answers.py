"""An answer comes in time from a sandbox that can't give one any more."""

from __future__ import annotations

import contextlib

import docker
import pytest

from service.sandbox.base import SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox, DockerSandboxSettings
from service.sandbox.settings import PoolSettings

from .test_cases import run, was_cut_off
from .test_tenants import container_of, gone

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]


async def test_the_grace_keeps_the_promise() -> None:
    """Deadline + 2 s: the default grace, and a second for a busy machine."""
    assert PoolSettings().grace_s <= 1.0


async def test_a_stopped_supervisor_is_answered_for_and_removed(
    sandbox: DockerSandbox, docker_sandbox_settings: DockerSandboxSettings
) -> None:
    session = sandbox.session(SessionLimits(run_limit_s=1.0))
    await run(session, "x = 1")
    container = container_of(session)
    with contextlib.closing(
        docker.APIClient(base_url=docker_sandbox_settings.docker_host, version="auto")
    ) as client:
        client.kill(container, "SIGSTOP")  # the supervisor, which code can't reach: it never answers
        told = await run(session, "print(x)")
        assert was_cut_off(told), told
        # By its own timer, after limit and grace, not by anything that the container did.
        assert told.waited_seconds >= 1.0 + PoolSettings().grace_s
        assert (await run(session, "print('x' in globals())")).stdout == "False\n"
        await session.close()
        assert await gone(client, container)
