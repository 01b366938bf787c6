"""Start of a real container."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import docker
import pytest

from service.sandbox.base import SandboxError
from service.sandbox.docker import container as container_module
from service.sandbox.docker.container import Container, Daemon
from service.sandbox.docker.container_config import create_arguments
from service.sandbox.docker.settings import DockerSandboxSettings

LABEL = f"start-{os.getpid()}"
pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


def containers_of_this_test(client: docker.APIClient) -> list[dict[str, Any]]:
    return list(client.containers(all=True, filters={"label": f"ih-grpo.test={LABEL}"}))


async def test_a_worker_that_fails_at_its_start_is_reported_with_its_stderr(
    docker_sandbox_settings: DockerSandboxSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> dict[str, Any]:
        return {**create_arguments(*arguments), "Cmd": ["not JSON"]}

    monkeypatch.setattr(container_module, "create_arguments", broken)
    daemon = Daemon(docker_sandbox_settings)
    try:
        with pytest.raises(SandboxError, match=r"closed its channel; the last line of its stderr: json\."):
            await Container.start(daemon, docker_sandbox_settings, {"ih-grpo.test": LABEL})
        async with asyncio.timeout(300):  # Docker removes it in the background
            while await daemon.call(containers_of_this_test):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        daemon.close()
