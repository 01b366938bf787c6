"""Checks of the sandbox: Docker and its image, isolation, or the runner."""

from __future__ import annotations

import os
from pathlib import Path

from service.doctor import CheckResult, Verdict
from service.sandbox.base import Sandbox, SandboxError
from service.sandbox.docker.settings import build_command, default_docker_host
from service.sandbox.factory import SandboxOptions, create_sandbox, instance_name
from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
from service.sandbox.runner.hosts import RunnerStatus
from service.sandbox.runner.settings import read_token
from service.server.settings import Settings


def docker_sandbox(settings: Settings) -> Sandbox:
    """One container for the isolation checks, under a separate instance name."""
    return create_sandbox(
        SandboxOptions(
            kind="in-process",
            image=settings.sandbox_image,
            pool_size=1,
            max_containers=2,
            instance=instance_name("doctor"),
        )
    )


def docker(settings: Settings) -> list[CheckResult]:
    """Check that the Docker daemon answers and has the sandbox image."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    host, image = default_docker_host(), settings.sandbox_image
    socket = Path(host.removeprefix("unix://"))
    if host.startswith("unix://") and not socket.is_socket():
        return [CheckResult("docker", "fail", f"no socket at {socket}", _no_docker(host))]
    try:
        client = docker.DockerClient(base_url=host, version="auto", timeout=10)
    except DockerException as error:
        return [
            CheckResult("docker", "fail", f"no response from {host}: {_first_line(error)}", _no_docker(host))
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
    """Start a container and run the isolation checks: memory, network, files, system calls."""
    try:
        await sandbox.start()
    except SandboxError as error:
        return CheckResult(
            "isolation", "fail", str(error), "docs/concepts/sandbox.md lists the requirements of each check"
        )
    finally:
        await sandbox.stop()
    return CheckResult("isolation", "ok", "all isolation checks passed")


async def runners(settings: Settings) -> list[CheckResult]:
    """Check that each runner is reachable, accepts the token and takes sessions.

    A server starts if one of them does, so a runner that is not ready is a warning then.
    """
    try:
        client = RunnerClient(
            RunnerClientSettings(
                settings.runner_url,
                read_token(settings.runner_token_file),
                ca_file=settings.runner_ca_file,
                certificate_file=settings.runner_cert_file,
                key_file=settings.runner_key_file,
            )
        )
    except ValueError as error:
        hint = "start it: ih-grpo runner --token-file FILE, with the same file in runner_token_file"
        return [CheckResult("runner", "fail", str(error), hint)]
    try:
        problems = await client.problems()
    finally:
        await client.stop()
    one_is_ready = None in problems.values()
    return [
        _runner(status, problems[status.address], "warn" if one_is_ready else "fail")
        for status in client.runners()
    ]


def _runner(status: RunnerStatus, problem: str | None, verdict: Verdict) -> CheckResult:
    if problem is None:
        return CheckResult("runner", "ok", f"ready at {status.address}, load {status.load:.0%}")
    if status.draining:
        hint = "end the drain with ih-grpo runner --resume, or remove the address from runner_url"
    elif "401" in problem:
        hint = "use the same token for the runner and in runner_token_file"
    else:
        hint = "start it: ih-grpo runner --token-file FILE, with the same file in runner_token_file"
    return CheckResult("runner", verdict, f"{status.address}: {problem}", hint)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _no_docker(host: str) -> str:
    socket = Path(host.removeprefix("unix://"))
    if host.startswith("unix://") and socket.exists() and not os.access(socket, os.W_OK):
        return f"sudo usermod -aG docker {os.environ.get('USER', '$USER')}, then log in again"
    return "start Docker (systemctl start docker), or set DOCKER_HOST to where it listens"
