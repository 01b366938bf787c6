"""Checks of what runs code: Docker and its image, or the runner; and that the walls hold."""

from __future__ import annotations

import os
from pathlib import Path

from service.doctor.check_result import CheckResult
from service.sandbox.base import Sandbox, SandboxError
from service.sandbox.docker.settings import DockerSandboxSettings, build_command
from service.server.settings import Settings


def docker_settings(settings: Settings) -> DockerSandboxSettings:
    """One container, for the proofs, under a name of its own."""
    return DockerSandboxSettings(
        image=settings.sandbox_image, pool_size=1, max_containers=2, instance=f"doctor-{os.getpid()}"
    )


def docker(settings: Settings) -> list[CheckResult]:
    """Does a daemon answer, and has it the image?"""
    import docker
    from docker.errors import DockerException, ImageNotFound

    host, image = docker_settings(settings).docker_host, settings.sandbox_image
    socket = Path(host.removeprefix("unix://"))
    if host.startswith("unix://") and not socket.is_socket():
        return [CheckResult("docker", "fail", f"there is no socket at {socket}", _no_docker(host))]
    try:
        client = docker.DockerClient(base_url=host, version="auto", timeout=10)
    except DockerException as error:
        return [
            CheckResult("docker", "fail", f"no answer from {host}: {_first_line(error)}", _no_docker(host))
        ]
    try:
        about = client.version()
        found = [CheckResult("docker", "ok", f"version {about['Version']} at {host}")]
        client.images.get(image)
    except ImageNotFound:
        return [
            *found,
            CheckResult("sandbox image", "fail", f"Docker has no image {image}", build_command(image)),
        ]
    except DockerException as error:
        return [CheckResult("docker", "fail", f"{host}: {_first_line(error)}", _no_docker(host))]
    finally:
        client.close()
    return [*found, CheckResult("sandbox image", "ok", image)]


async def isolation(sandbox: Sandbox) -> CheckResult:
    """Start a container and have its walls prove themselves: memory, network, files, system calls."""
    try:
        await sandbox.start()
    except SandboxError as error:
        return CheckResult(
            "isolation", "fail", str(error), "docs/sandbox.md tells what each proof asks of the machine"
        )
    finally:
        await sandbox.stop()
    return CheckResult("isolation", "ok", "every start-up proof holds")


async def runner(settings: Settings) -> CheckResult:
    """Is the runner there, and does it take our token?"""
    from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
    from service.sandbox.runner.settings import read_token

    try:
        token = read_token(settings.runner_token_file)
        client = RunnerClient(RunnerClientSettings(settings.runner_url, token, connect_timeout_s=3))
        try:
            await client.start()
        finally:
            await client.stop()
    except (ValueError, SandboxError) as error:
        hint = "start it: ih-grpo runner --token-file FILE, with the same file in runner_token_file"
        return CheckResult("runner", "fail", str(error), hint)
    return CheckResult("runner", "ok", f"ready at {settings.runner_url}")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _no_docker(host: str) -> str:
    socket = Path(host.removeprefix("unix://"))
    if host.startswith("unix://") and socket.exists() and not os.access(socket, os.W_OK):
        return f"sudo usermod -aG docker {os.environ.get('USER', '$USER')}, then log in again"
    return "start Docker (systemctl start docker), or set DOCKER_HOST to where it listens"
