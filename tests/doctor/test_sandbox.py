"""Checks of isolation and the runner."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.doctor import sandbox
from service.sandbox.base import SandboxError
from service.sandbox.docker.sandbox import DockerSandbox
from service.server.settings import Settings
from tests.sandbox.conftest import served
from tests.support.fake_sandbox import TOKEN, FakeSandbox


@pytest.mark.docker
@pytest.mark.slow
async def test_isolation_checks_pass_in_a_real_container() -> None:
    settings = sandbox.docker_sandbox(Settings()).settings.model_copy(
        update={"start_timeout_s": 300, "queue_timeout_s": 300, "daemon_timeout_s": 100, "grace_s": 20}
    )
    assert (await sandbox.isolation(DockerSandbox(settings))).verdict == "ok"


async def test_reports_a_failed_isolation_check(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = FakeSandbox()

    async def start() -> None:
        raise SandboxError("the network can be reached")

    monkeypatch.setattr(broken, "start", start)
    found = await sandbox.isolation(broken)
    assert (found.verdict, found.found) == ("fail", "the network can be reached")


async def test_reports_missing_token_and_unreachable_runner(tmp_path: Path) -> None:
    (found,) = await sandbox.runners(Settings())
    assert "token" in found.found
    absent = Settings(runner_url=(f"unix:{tmp_path}/runner.sock",), runner_token_file=token_file(tmp_path))
    (found,) = await sandbox.runners(absent)
    assert found.verdict == "fail"
    assert "ih-grpo runner" in found.hint


async def test_checks_every_runner(tmp_path: Path) -> None:
    addresses = tuple(f"unix:{tmp_path}/{name}.sock" for name in ("good", "drained", "absent"))
    settings = Settings(runner_url=addresses, runner_token_file=token_file(tmp_path))
    async with served(FakeSandbox(), addresses[0]) as good, served(FakeSandbox(), addresses[1]) as drained:
        drained.server.runner.close_admission()
        found = await sandbox.runners(settings)
        assert [result.verdict for result in found] == ["ok", "warn", "warn"]
        assert "draining" in found[1].found
        assert "--resume" in found[1].hint
        good.server.runner.close_admission()
        assert [result.verdict for result in await sandbox.runners(settings)] == ["fail"] * 3


async def test_reports_a_wrong_token(tmp_path: Path) -> None:
    async with served(FakeSandbox(), f"unix:{tmp_path}/r.sock"):
        token = tmp_path / "other"
        token.write_text("another secret, of some length".replace(" ", "-"))
        settings = Settings(runner_url=(f"unix:{tmp_path}/r.sock",), runner_token_file=token)
        (found,) = await sandbox.runners(settings)
        assert (found.verdict, found.hint) == (
            "fail",
            "use the same token for the runner and in runner_token_file",
        )


def token_file(folder: Path) -> Path:
    path = folder / "token"
    path.write_text(TOKEN.get_secret_value())
    return path
