from __future__ import annotations

from dataclasses import replace

import pytest

from service.sandbox.base import ExecutionResult, SandboxError, SessionLimits
from service.sandbox.isolation_checks import Probe, probes, prove_isolation
from service.sandbox.settings import PoolSettings

GOOD = ExecutionResult("", "", "ok", 0.0, 0.0)
HOLDS = {
    "uid": replace(GOOD, stdout="True 0000000000000000 0000000000000000 1\n"),
    "seccomp": replace(GOOD, stdout="True -1 -1\n"),
    "read-only root": replace(GOOD, stdout="checked\n"),
    "disk": replace(GOOD, stdout="True\n"),
    "network": replace(GOOD, stdout="['lo', 'sit0']\n"),
    "pids": replace(GOOD, stdout="limited\n"),
    "memory": replace(GOOD, status="oom"),
    "life after the memory limit": replace(GOOD, stdout="42\n"),
}
BREAKS = {
    "uid": "False 00000000000000e0 0000000000000000 1\n",
    "seccomp": "False 0\n",
    "read-only root": "wrote /usr\nchecked\n",
    "disk": "",
    "network": "connected\n['lo']\n",
    "pids": "no limit\n",
    "memory": "",
    "life after the memory limit": "",
}
WALLS = probes(PoolSettings())


class Answers:
    """A session that answers each probe as told."""

    def __init__(self, answers: dict[str, ExecutionResult]) -> None:
        self.answers = {probe.code: answers[probe.wall] for probe in WALLS}
        self.closed = False

    async def prepare(self) -> None: ...

    async def invoke(self, code: str) -> None:
        self.code = code

    async def flush(self) -> ExecutionResult:
        return self.answers[self.code]

    async def close(self) -> None:
        self.closed = True


async def prove(answers: dict[str, ExecutionResult], walls: list[Probe] = WALLS) -> Answers:
    session = Answers(answers)
    try:
        await prove_isolation(lambda limits: session, walls)
    finally:
        assert session.closed
    return session


async def test_all_walls_stand() -> None:
    await prove(HOLDS)


@pytest.mark.parametrize("wall", HOLDS)
@pytest.mark.parametrize("status", ["ok", "error", "timeout", "sandbox_error"])
async def test_each_wall_that_does_not_stand_is_named(wall: str, status: str) -> None:
    broken = replace(GOOD, stdout=BREAKS[wall], status=status)  # type: ignore[arg-type]
    with pytest.raises(SandboxError, match=f"does not hold: {wall}"):
        await prove({**HOLDS, wall: broken})


async def test_an_interface_to_the_outside_is_found() -> None:
    with pytest.raises(SandboxError, match="network"):
        await prove({**HOLDS, "network": replace(GOOD, stdout="['lo', 'eth0']\n")})


def test_probes_are_valid_python() -> None:
    for probe in WALLS:
        compile(probe.code, probe.wall, "exec")
    assert SessionLimits().run_limit_s > 0
