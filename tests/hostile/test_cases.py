"""Every case of ``cases.py`` on a real sandbox, followed by a call of the same tenant and one of another tenant."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.sandbox.base import ExecutionResult, Session, SessionLimits

from .cases import CASES, Case
from .conftest import Backend

pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]


LOOSE_S = 30.0
"""Longest accepted time from the deadline to the answer. A single timer around the whole answer enforces the grace of
1 s (tested in ``test_answers.py``), but the load of the machine can delay the timer itself. The bound is therefore
loose, and the table contains the latest answer of a run."""


async def run(session: Session, code: str) -> ExecutionResult:
    await session.invoke(code)
    return await session.flush()


@pytest.mark.parametrize("case", CASES, ids=[f"{case.id}-{case.title.replace(' ', '-')}" for case in CASES])
async def test_case(case: Case, backend: Backend, table: dict[str, str]) -> None:
    if backend.name in case.not_held_on:
        pytest.skip(f"not held on {backend.name}")
    case = adapted(case, backend.name)
    tenant = backend.sandbox.session(SessionLimits(run_limit_s=case.run_limit_s))
    try:
        result = await run(tenant, case.code)
        if was_cut_off(result):
            # A supervisor that does not answer within the grace is dropped. On a busy machine this is accepted for
            # code that only the limit ends, and for no other.
            assert "timeout" in case.statuses, result
        else:
            check(case, result)
        backend.latest_s = max(backend.latest_s, result.waited_seconds - case.run_limit_s)
        assert result.waited_seconds < case.run_limit_s + LOOSE_S
        # A broken sandbox is reported once. After that, and in all other cases, the tenant continues.
        after = await run(tenant, case.after)
        if after.status == "sandbox_error":
            assert result.status != "sandbox_error"
            after = await run(tenant, "print('still here')")
        assert (after.status, after.stdout, after.stderr) == ("ok", "still here\n", "")
        assert (await run(backend.neighbour, "print(secret)")).stdout == "42\n"
        table[f"{backend.name} {case.id}"] = summary(result)
    finally:
        await tenant.close()


def adapted(case: Case, backend: str) -> Case:
    """Return the case with the further statuses that are accepted on the backend."""
    if backend != "runsc" or not case.on_gvisor:
        return case
    return replace(case, status=[*case.statuses, *case.on_gvisor], last_error_line=None)


def was_cut_off(result: ExecutionResult) -> bool:
    return result.status == "sandbox_error" and "did not answer in time" in result.stderr


def summary(result: ExecutionResult) -> str:
    """Return the cell of the table."""
    error = result.stderr.strip().splitlines()[-1:] if result.status == "error" else []
    ended = [f"signal {result.signal}"] if result.signal else []
    ended += [f"exit code {result.exit_code}"] if result.exit_code and not error else []
    line = ", ".join([result.status, *ended, *error])[:120]
    return line.encode("ascii", "backslashreplace").decode().replace("|", "\\|")


def check(case: Case, result: ExecutionResult) -> None:
    assert result.status in case.statuses, result
    assert len(result.stdout) <= 1 << 18
    assert len(result.stderr) <= 1 << 18
    if result.status == "sandbox_error":
        return
    if case.stdout is not None:
        assert result.stdout.strip() == case.stdout
    if case.last_error_line is not None:
        assert case.last_error_line in result.stderr.strip().splitlines()[-1]
    if case.signal is not None:
        assert result.signal == case.signal
    if case.exit_code is not None:
        assert result.exit_code == case.exit_code
