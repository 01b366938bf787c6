"""Sandbox factory: the one place that maps a kind of sandbox and its options to an implementation.

The kinds differ in what they require and in how well they isolate:

* ``runner``: a client of an ``ih-grpo runner`` process. The caller needs no access to Docker.
* ``in-process``: Docker containers, started by the calling process, which needs the Docker socket.
* ``process``: bubblewrap processes on this host, without Docker. Weaker isolation, meant for training.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import SecretStr

from service.sandbox.base import Sandbox

SandboxKind = Literal["runner", "in-process", "process"]

_MIN_RUN_LIMIT_CEILING_S: Final = 30.0
"""Floor of a pool's run limit ceiling, in seconds: the isolation checks at the start need this much time on a
busy machine, also if no session may run as long."""


@dataclass(frozen=True, slots=True)
class RunnerTlsFiles:
    """TLS files of a client of runners, in PEM format."""

    ca: Path | None = None
    """Certificate authorities of the runners. If given, all TCP addresses use TLS."""
    certificate: Path | None = None
    """The client's certificate, if the runners require one."""
    key: Path | None = None
    """Its private key; None if it is in the same file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxOptions:
    """Options of all kinds of sandbox. Each kind reads its own and ignores the others. Times in seconds."""

    kind: SandboxKind

    pool_size: int = 4
    """``in-process`` and ``process``: idle sandboxes to keep warm, at most ``max_containers``."""
    max_containers: int = 32
    """``in-process`` and ``process``: sandboxes that exist at the same time."""
    queue_timeout_s: float = 30.0
    """``in-process`` and ``process``: how long a session waits for a free sandbox."""
    run_limit_s: float = 30.0
    """``in-process`` and ``process``: the highest run limit that a session will request."""

    image: str | None = None
    """``in-process``: the sandbox image; None for the default one."""
    runtime: str | None = None
    """``in-process``: the OCI runtime; None for the daemon's default."""
    instance: str | None = None
    """``in-process``: the owner in the containers' labels, see ``instance_name``; None for the host name."""
    reuse: bool = False
    """``in-process``: reset containers after a session and use them again, see ``PoolSettings.reuse``."""
    cgroup_root: Path | None = None
    """``in-process``: directory of the daemon's cgroups; None for ``/sys/fs/cgroup``."""

    python: str | None = None
    """``process``: the interpreter that runs the code; None for the current one."""

    runner_addresses: tuple[str, ...] = ()
    """``runner``: ``unix:/path/to.sock``, ``host:port`` or ``wss://host:port`` of each runner."""
    runner_token: SecretStr | None = None
    """``runner``: the shared secret; None to read it from ``runner_token_file`` or the environment."""
    runner_token_file: Path | None = None
    runner_tls: RunnerTlsFiles = RunnerTlsFiles()
    """``runner``: TLS files of the client."""
    start_timeout_s: float | None = None
    """``runner``: how long ``start`` waits for the runner to be ready; None for the client's default."""


def create_sandbox(options: SandboxOptions) -> Sandbox:
    """Return the sandbox for ``options``, not started.

    Raises:
        TokenError: the runner's token is missing, unreadable or too short.
        ValueError: an option is invalid, or a TLS file is unusable.
    """
    # Imported on use: Docker and the runner's client are needed by one kind each.
    if options.kind == "runner":
        from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
        from service.sandbox.runner.settings import read_token

        return RunnerClient(
            RunnerClientSettings(
                addresses=options.runner_addresses,
                token=options.runner_token or read_token(options.runner_token_file),
                ca_file=options.runner_tls.ca,
                certificate_file=options.runner_tls.certificate,
                key_file=options.runner_tls.key,
                start_timeout_s=options.start_timeout_s,
            )
        )
    settings: dict[str, Any] = {
        "pool_size": min(options.pool_size, options.max_containers),
        "max_containers": options.max_containers,
        "queue_timeout_s": options.queue_timeout_s,
        "run_limit_ceiling_s": max(_MIN_RUN_LIMIT_CEILING_S, options.run_limit_s),
    }
    if options.kind == "process":
        from service.sandbox.bubblewrap.sandbox import ProcessSandbox, ProcessSandboxSettings

        if options.python is not None:
            settings["python"] = options.python
        return ProcessSandbox(ProcessSandboxSettings(**settings))
    from service.sandbox.docker.sandbox import DockerSandbox
    from service.sandbox.docker.settings import DockerSandboxSettings

    chosen = {
        "image": options.image,
        "runtime": options.runtime,
        "instance": options.instance,
        "cgroup_root": options.cgroup_root,
    }
    settings |= {name: value for name, value in chosen.items() if value is not None}
    settings["reuse"] = options.reuse
    return DockerSandbox(DockerSandboxSettings(**settings))


def instance_name(purpose: str, suffix: object = None) -> str:
    """Return a name for ``SandboxOptions.instance`` that is unique on this host.

    Two processes on one Docker daemon need different names. Otherwise each removes the other's containers as
    orphans.

    Args:
        purpose: what the process does, such as ``api`` or ``train``.
        suffix: distinguishes processes of one purpose; the process id if None.
    """
    return f"{os.uname().nodename}-{purpose}-{os.getpid() if suffix is None else suffix}"
