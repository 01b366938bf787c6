"""Answers within the grace for a sandbox that no longer responds."""

from __future__ import annotations

import contextlib

import docker
import pytest

from service.sandbox.base import SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings
from service.sandbox.settings import PoolSettings

from .test_cases import run, was_cut_off
from .test_tenants import container_of, gone

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]


async def test_the_default_grace_is_at_most_one_second() -> None:
    """The answer is due at the deadline + 2 s: the default grace, and one second for a busy machine."""
    assert PoolSettings().grace_s <= 1.0


async def test_a_stopped_supervisor_is_reported_and_removed(
    sandbox: DockerSandbox, docker_sandbox_settings: DockerSandboxSettings
) -> None:
    session = sandbox.session(SessionLimits(run_limit_s=1.0))
    await run(session, "x = 1")
    container = container_of(session)
    with contextlib.closing(
        docker.APIClient(base_url=docker_sandbox_settings.docker_host, version="auto")
    ) as client:
        client.kill(container, "SIGSTOP")  # the supervisor, which code can't access: it never answers
        result = await run(session, "print(x)")
        assert was_cut_off(result), result
        # By the timer, after limit and grace, not by an event of the container.
        assert result.waited_seconds >= 1.0 + PoolSettings().grace_s
        assert (await run(session, "print('x' in globals())")).stdout == "False\n"
        await session.close()
        assert await gone(client, container)
