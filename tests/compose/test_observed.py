"""The profile `observe` on a stack with API keys: only Prometheus can read the metrics."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from tests.compose.stack import Stack, image_of, new_stack
from tests.compose.test_observe import ALERTS, expressions

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.compose, pytest.mark.timeout(1500)]

NEVER_HAPPENED = {
    "ih-grpo-serving: Rejected by limit",
    "ih-grpo-sandbox: Rejected, by reason",
    "ih-grpo-sandbox: Killed, by reason",
}
"""Panels without data until such an event happens."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The running profile with one key, created as in secrets/README.md."""
    folder = tmp_path_factory.mktemp("observed-")
    image = image_of("prometheus")
    with new_stack("v2", folder, PROMETHEUS_IMAGE=image, COMPOSE_PROFILES="observe") as stack:
        (stack.key,) = re.findall(r"sk-\S+", stack.follow(__file__, "key"))
        stack.compose("up", "-d", "api", "prometheus")
        stack.wait_ready()
        stack.solve()
        yield stack


def ask(stack: Stack, path: str, **parameters: str) -> Any:
    """Address of Prometheus's HTTP API. The port is not published, but the container is reachable from this
    machine."""
    prometheus = stack.container("prometheus")
    address = prometheus.attrs["NetworkSettings"]["Networks"][f"{stack.name}_observe"]["IPAddress"]
    reply = httpx.get(f"http://{address}:9090/api/v1/{path}", params=parameters, timeout=10).json()
    assert reply["status"] == "success", reply
    return reply["data"]


def values(stack: Stack, expression: str) -> list[float]:
    """Current values of a PromQL expression, without NaN."""
    asked = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
    found = [float(series["value"][1]) for series in ask(stack, "query", query=asked)["result"]]
    return [value for value in found if not math.isnan(value)]


def test_metrics_need_the_key(stack: Stack) -> None:
    assert httpx.get(f"{stack.url}/health").status_code == 200
    assert httpx.get(f"{stack.url}/ready").json() == {"status": "ready"}
    assert stack.get("/ready").json()["sandbox"] == "ready"
    for path in ("/v1/models", "/metrics"):
        assert httpx.get(stack.url + path).status_code == 401, path
        assert stack.get(path).status_code == 200, path
    wrong = httpx.get(f"{stack.url}/v1/models", headers={"Authorization": "Bearer sk-wrong"})
    assert wrong.status_code == 401
    assert wrong.json()["error"]["code"] == "invalid_api_key"


def test_public_address_is_allowed_with_a_key(stack: Stack) -> None:
    output = stack.compose("run", "--rm", "-T", "init", PUBLISH_ADDRESS="0.0.0.0")
    assert "API keys: 1" in output


def test_api_and_runner_are_scraped(stack: Stack) -> None:
    deadline, health = time.monotonic() + 90, {}
    while set(health.values()) != {"up"}:
        assert time.monotonic() < deadline, ask(stack, "targets")
        time.sleep(1)
        health = {item["scrapePool"]: item["health"] for item in ask(stack, "targets")["activeTargets"]}
    assert health.keys() == {"api", "runner"}  # vllm does not resolve: no target and no failure


def test_every_panel_returns_data(stack: Stack) -> None:
    missing = [
        (where, asked) for where, asked in expressions() if ": " in where and where not in NEVER_HAPPENED
    ]
    deadline = time.monotonic() + 180
    while missing:
        assert time.monotonic() < deadline, missing
        stack.solve()  # creates data for rates
        time.sleep(5)
        missing = [(where, asked) for where, asked in missing if not values(stack, asked)]
    known = ask(stack, "metadata").keys()
    for where, asked in expressions():
        values(stack, asked)  # raises if the query is invalid
        for name in re.findall(r"\b(?:ihgrpo|process)_\w+", asked):
            assert known & {name, re.sub(r"_(total|bucket)$", "", name)}, f"{where}: {name}"


def test_alert_fires_when_the_runner_is_down(stack: Stack) -> None:
    wanted = {
        rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    }

    def rules() -> dict[str, dict[str, Any]]:
        return {rule["name"]: rule for group in ask(stack, "rules")["groups"] for rule in group["rules"]}

    assert rules().keys() == wanted
    assert {(rule["health"], rule["state"]) for rule in rules().values()} == {("ok", "inactive")}
    stack.compose("stop", "runner")
    deadline = time.monotonic() + 120
    while rules()["Down"]["state"] == "inactive":
        assert time.monotonic() < deadline
        time.sleep(1)
    (alert,) = rules()["Down"]["alerts"]
    assert alert["annotations"]["summary"] == "runner does not answer"
