from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from service.sandbox.bubblewrap.sandbox import ProcessSandbox
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DEFAULT_IMAGE
from service.sandbox.factory import RunnerTlsFiles, SandboxOptions, create_sandbox, instance_name
from service.sandbox.runner.client import RunnerClient
from service.sandbox.runner.settings import TOKEN_ENV, TokenError

TOKEN = "0123456789abcdef"


def create(**options: Any) -> Any:
    return create_sandbox(SandboxOptions(**options))


def test_in_process_builds_a_docker_sandbox() -> None:
    sandbox = create(kind="in-process", image="mine", runtime="runsc", instance="one", max_containers=7)
    assert isinstance(sandbox, DockerSandbox)
    settings = sandbox.settings
    assert (settings.image, settings.runtime, settings.instance) == ("mine", "runsc", "one")
    assert (settings.max_containers, settings.queue_timeout_s) == (7, 30.0)
    default = create(kind="in-process").settings
    assert (default.image, default.runtime, default.instance) == (DEFAULT_IMAGE, None, os.uname().nodename)


def test_process_builds_a_bubblewrap_sandbox() -> None:
    sandbox = create(kind="process", python="/opt/python", queue_timeout_s=600)
    assert isinstance(sandbox, ProcessSandbox)
    assert (sandbox.settings.python, sandbox.settings.queue_timeout_s) == ("/opt/python", 600)


@pytest.mark.parametrize("kind", ["in-process", "process"])
def test_pool_is_no_larger_than_the_number_of_containers(kind: str) -> None:
    assert create(kind=kind, pool_size=9, max_containers=2).settings.pool_size == 2
    with pytest.raises(ValidationError, match="max_containers"):
        create(kind=kind, max_containers=0)


@pytest.mark.parametrize(("requested", "ceiling"), [(0.5, 30.0), (90.0, 90.0)])
def test_run_limit_ceiling_leaves_time_for_the_isolation_checks(requested: float, ceiling: float) -> None:
    assert create(kind="in-process", run_limit_s=requested).settings.run_limit_ceiling_s == ceiling


def test_runner_token_comes_from_the_options_the_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    address = {"kind": "runner", "runner_addresses": ("127.0.0.1:9",)}
    given = create(**address, runner_token=SecretStr("x"), runner_token_file=file)
    assert isinstance(given, RunnerClient)
    assert given._settings.token == SecretStr("x")
    assert create(**address, runner_token_file=file)._settings.token == SecretStr(TOKEN)
    monkeypatch.setenv(TOKEN_ENV, TOKEN)
    assert create(**address)._settings.token == SecretStr(TOKEN)
    monkeypatch.delenv(TOKEN_ENV)
    with pytest.raises(TokenError, match=TOKEN_ENV):
        create(**address)


def test_runner_address_is_validated() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        create(kind="runner", runner_addresses=("nowhere",), runner_token=SecretStr(TOKEN))


def test_instance_names_differ_by_purpose_and_process() -> None:
    assert instance_name("api", 8000) == f"{os.uname().nodename}-api-8000"
    assert instance_name("train").endswith(f"-train-{os.getpid()}")


def test_runner_options_reach_the_client(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.pem can't be read"):
        create(
            kind="runner",
            runner_addresses=("a:1", "b:2"),
            runner_token=SecretStr(TOKEN),
            runner_tls=RunnerTlsFiles(ca=tmp_path / "absent.pem"),
        )
    client = create(kind="runner", runner_addresses=("a:1", "b:2", "a:1"), runner_token=SecretStr(TOKEN))
    assert isinstance(client, RunnerClient)
    assert [status.address for status in client.runners()] == ["a:1", "b:2"]
