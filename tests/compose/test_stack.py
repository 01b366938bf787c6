"""docker-compose.yml on a real daemon: it serves, recovers and is removed. The tests of one stack run in
order."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.compose.stack import Stack, new_stack

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.compose, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module", params=["v1", "v2"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The running default profile."""
    with new_stack(request.param, tmp_path_factory.mktemp(f"default-{request.param}-")) as stack:
        stack.follow(__file__, "start")
        yield stack


def test_a_problem_is_solved_through_the_stack(stack: Stack) -> None:
    stack.wait_ready()
    stack.solve()


def test_only_the_runner_has_the_docker_socket_and_no_internet(stack: Stack) -> None:
    api, runner = (stack.container(name).attrs for name in ("api", "runner"))
    sockets = [mount for mount in api["Mounts"] if mount["Source"].endswith(".sock")]
    assert sockets == []
    assert api["Config"]["User"] == "10001:10001"
    for container in (api, runner):
        assert container["HostConfig"]["ReadonlyRootfs"]
        assert container["HostConfig"]["CapDrop"] == ["ALL"]
        assert container["HostConfig"]["Memory"] > 0
        assert container["HostConfig"]["PidsLimit"] > 0
        assert any(
            option.startswith("no-new-privileges") for option in container["HostConfig"]["SecurityOpt"]
        )
    (network,) = runner["NetworkSettings"]["Networks"].values()
    assert stack.daemon.networks.get(network["NetworkID"]).attrs["Internal"]
    assert not runner["HostConfig"]["PortBindings"]


def test_runner_rejects_other_clients_and_token_is_not_in_environment(stack: Stack) -> None:
    ask = (
        "import urllib.request as u, urllib.error as e\n"
        "try: print(u.urlopen('http://runner:8090/ready').status)\n"
        "except e.HTTPError as error: print(error.code)"
    )
    assert stack.container("api").exec_run(["python3", "-c", ask]).output.strip() == b"401"
    token = stack.container("api").exec_run(["cat", "/run/ih-grpo/runner-token"]).output.decode().strip()
    assert len(token) == 64
    for name in ("api", "runner"):
        assert token not in str(stack.container(name).attrs)


def test_doctor_passes_inside_the_stack(stack: Stack) -> None:
    done = stack.container("api").exec_run(["ih-grpo", "doctor", "--json"], demux=True)
    report = json.loads(done.output[0])
    assert report["ok"], report
    assert {check["check"]: check["verdict"] for check in report["checks"]}["runner"] == "ok"


@pytest.mark.parametrize("service", ["runner", "api"])
def test_killed_services_restart(stack: Stack, service: str) -> None:
    before = stack.container(service).attrs["State"]["StartedAt"]
    stack.kill(service)
    deadline = time.monotonic() + 120
    while stack.container(service).attrs["State"]["StartedAt"] == before:
        assert time.monotonic() < deadline, f"{service} was not started again"
        time.sleep(0.5)
    stack.wait_ready()
    stack.solve()


def test_restart_keeps_the_secrets(stack: Stack) -> None:
    read = ["cat", "/run/ih-grpo/runner-token"]
    token = stack.container("api").exec_run(read).output
    stack.compose("up", "-d", "--force-recreate")
    stack.wait_ready()
    assert stack.container("api").exec_run(read).output == token


def test_stack_refuses_public_address_without_a_key(stack: Stack) -> None:
    refused = stack.run("run", "--rm", "-T", "init", PUBLISH_ADDRESS="0.0.0.0")
    assert refused.returncode != 0
    assert "there is no API key" in refused.stderr
    assert httpx.get(f"{stack.url}/health").status_code == 200


def test_down_removes_everything(stack: Stack) -> None:
    assert len(stack.leftovers()) > 6  # proves that an empty list is meaningful: sandboxes are listed as well
    assert any(name.startswith("ih-grpo-") for name in stack.leftovers())
    stack.compose("down", "--volumes", "--timeout", "60")
    deadline = time.monotonic() + 60
    while (left := stack.leftovers()) and time.monotonic() < deadline:
        time.sleep(0.5)  # Docker removes a sandbox asynchronously
    assert left == []
