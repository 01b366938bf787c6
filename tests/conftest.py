"""Shared fixtures."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException
from hypothesis import HealthCheck, settings

from service.sandbox.docker.settings import DEFAULT_IMAGE, DockerSandboxSettings

pytest.register_assert_rewrite("tests.support.batching_engine")

ROOT = Path(__file__).parents[1]

# No deadlines: the speed of the machine must not decide a test.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def docker_sandbox_settings() -> DockerSandboxSettings:
    """Settings of a small pool with long timeouts for busy machines."""
    return DockerSandboxSettings(
        instance=f"test-{os.getpid()}",
        image=os.environ.get("IHGRPO_SANDBOX_IMAGE", DEFAULT_IMAGE),
        pool_size=1,
        max_containers=8,
        queue_timeout_s=300,
        start_timeout_s=300,
        daemon_timeout_s=100,
        grace_s=20,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group tests for ``pytest -n 2 --dist loadgroup``: tests of one file share a process and its fixtures.

    All tests with containers are one group, so that they never compete with each other.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        group = "docker" if item.get_closest_marker("docker") else item.path.relative_to(ROOT).as_posix()
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need Docker if there is no daemon, or fail them if Docker is required."""
    if item.get_closest_marker("docker") is None or (missing := docker_is_missing()) is None:
        return
    if os.environ.get("IHGRPO_REQUIRE_DOCKER") == "1":
        pytest.fail(f"IHGRPO_REQUIRE_DOCKER=1, but {missing}", pytrace=False)
    pytest.skip(missing)


@functools.cache
def docker_is_missing() -> str | None:
    """The reason why tests with containers can't run; None if they can."""
    settings = DockerSandboxSettings()
    socket = settings.docker_host.removeprefix("unix://")
    if socket != settings.docker_host and not Path(socket).is_socket():
        # The client would leave its socket open, and warnings are errors.
        return f"no Docker answers at {settings.docker_host} (make setup)"
    try:
        with contextlib.closing(docker.APIClient(base_url=settings.docker_host, version="auto")) as client:
            client.inspect_image(settings.image)
    except DockerException as error:
        return f"no Docker with the sandbox image at {settings.docker_host} (make setup): {error}"
    return None


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random tiny Qwen3 checkpoint with its tokenizer; see ``tests/support/tiny_qwen3.py``."""
    from tests.support.tiny_qwen3 import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("tiny-qwen3"))
