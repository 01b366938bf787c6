"""Checks of the sandbox: its isolation, or the runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from service.doctor import CheckResult, Verdict
from service.sandbox.base import Sandbox, SandboxError, SessionLimits
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


async def verify(sandbox: Sandbox, packages: Sequence[str]) -> list[CheckResult]:
    """Start a container, run the isolation checks, and import each of ``packages`` in a new session."""
    try:
        await sandbox.start()
        imports = [await _import(sandbox, name) for name in packages]
    except SandboxError as error:
        return [CheckResult("isolation", "fail", str(error))]
    finally:
        await sandbox.stop()
    return [CheckResult("isolation", "ok", "all isolation checks passed"), *imports]


async def _import(sandbox: Sandbox, package: str) -> CheckResult:
    """Import the modules of a package under all limits. One that can be imported is enough."""
    session = sandbox.session(SessionLimits(run_limit_s=30.0, eager=False))
    try:
        await session.invoke(_IMPORT.replace("PACKAGE", repr(package)))
        result = await session.flush()
    finally:
        await session.close()
    if result.status == "ok":
        return CheckResult(package, "ok", result.stdout.strip())
    reason = (result.stderr.strip() or result.stdout.strip() or result.status).splitlines()[-1]
    return CheckResult(package, "fail", f"can't be imported in the sandbox: {reason}")


_IMPORT: Final = """
import importlib, importlib.metadata, time
package = importlib.metadata.distribution(PACKAGE)
files = [path.parts for path in package.files or ()]
names = (package.read_text("top_level.txt") or "").split() or sorted(
    {parts[0] for parts in files if len(parts) == 2 and parts[1] == "__init__.py"}
    | {parts[0].split(".")[0] for parts in files if len(parts) == 1 and parts[0].endswith((".py", ".so"))}
)
names = [name for name in names if not name.startswith("_")]
done, problem = [], None
for name in names:
    began = time.perf_counter()
    try:
        importlib.import_module(name)
    except BaseException as error:
        problem = error
    else:
        done.append(f"import {name} took {time.perf_counter() - began:.1f} s")
if problem is not None and not done:
    raise problem
print(package.version, "without modules" if not names else ", ".join(done))
"""


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
