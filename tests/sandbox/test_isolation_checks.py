from __future__ import annotations

from dataclasses import replace

import pytest

from service.sandbox.base import ExecutionResult, OnOutput, SandboxError, SessionLimits
from service.sandbox.isolation_checks import IsolationCheck, check_isolation, isolation_checks
from service.sandbox.settings import PoolSettings

GOOD = ExecutionResult("", "", "ok", 0.0, 0.0)
PASSING = {
    "uid": replace(GOOD, stdout="True 0000000000000000 0000000000000000 1\n"),
    "seccomp": replace(GOOD, stdout="True -1 -1\n"),
    "signals from the kernel": replace(GOOD, stdout="-1 -1 -1 -1 -1\n"),
    "masked files": replace(GOOD, stdout="checked\n"),
    "read-only root": replace(GOOD, stdout="checked\n"),
    "disk": replace(GOOD, stdout="True\n"),
    "network": replace(GOOD, stdout="['lo', 'sit0']\n"),
    "pids": replace(GOOD, stdout="limited\n"),
    "memory": replace(GOOD, status="oom"),
    "life after the memory limit": replace(GOOD, stdout="42\n"),
}
FAILING = {
    "uid": "False 00000000000000e0 0000000000000000 1\n",
    "seccomp": "False 0\n",
    "signals from the kernel": "0 -1 -1 -1 -1\n",
    "masked files": "read /proc/locks\nchecked\n",
    "read-only root": "wrote /usr\nchecked\n",
    "disk": "",
    "network": "created 2 1\n['lo']\n",
    "pids": "no limit\n",
    "memory": "",
    "life after the memory limit": "",
}
CHECKS = isolation_checks(PoolSettings())


class Answers:
    """A session with a fixed result for each check."""

    def __init__(self, answers: dict[str, ExecutionResult]) -> None:
        self.answers = {check.code: answers[check.name] for check in CHECKS}
        self.closed = False

    async def prepare(self) -> None: ...

    async def invoke(self, code: str) -> None:
        self.code = code

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        return self.answers[self.code]

    async def suspend(self) -> None: ...
    async def resume(self) -> None: ...

    async def close(self) -> None:
        self.closed = True


async def run_checks(answers: dict[str, ExecutionResult], checks: list[IsolationCheck] = CHECKS) -> Answers:
    session = Answers(answers)
    try:
        await check_isolation(lambda limits: session, checks)
    finally:
        assert session.closed
    return session


async def test_passes_when_every_check_passes() -> None:
    await run_checks(PASSING)


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("status", ["ok", "error", "timeout", "sandbox_error"])
async def test_reports_the_name_of_a_failed_check(name: str, status: str) -> None:
    broken = replace(GOOD, stdout=FAILING[name], status=status)  # type: ignore[arg-type]
    with pytest.raises(SandboxError, match=f"failed an isolation check and is not used: {name}"):
        await run_checks({**PASSING, name: broken})


async def test_rejects_a_hardware_network_interface() -> None:
    with pytest.raises(SandboxError, match="network"):
        await run_checks({**PASSING, "network": replace(GOOD, stdout="['lo', 'eth0']\n")})


def test_checks_are_valid_python() -> None:
    for check in CHECKS:
        compile(check.code, check.name, "exec")
    assert SessionLimits().run_limit_s > 0
