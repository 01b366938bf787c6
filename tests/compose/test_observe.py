"""Dashboards and alerts use existing metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from pydantic import SecretStr

from service.api.telemetry.containers import ContainerCollector, ContainerCounts
from service.api.telemetry.metrics import Metrics
from service.api.telemetry.suspensions import SuspensionCollector, SuspensionCounts
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.runner.admission import SessionAdmission
from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
from service.sandbox.runner.metrics import RunnerMetrics
from service.store.files import FileCounts

OBSERVE = Path(__file__).parents[2] / "observe"
DASHBOARDS = sorted((OBSERVE / "grafana/dashboards").glob("*.json"))
ALERTS = OBSERVE / "prometheus/alerts.yml"


@pytest.fixture(scope="module")
def metrics() -> dict[str, Metric]:
    """All metrics of api and runner by family name, without Prometheus' suffixes."""
    sandbox = DockerSandbox()
    admission = SessionAdmission(1, max_waiting=1, timeout_s=1)
    runner = RunnerMetrics(admission, lambda: 0, lambda: False, sandbox, max_sessions=1)
    api = Metrics()
    api.watch(RunnerClient(RunnerClientSettings(("127.0.0.1:9",), SecretStr("t" * 32))))
    api.registry.register(ContainerCollector(ContainerCounts, FileCounts()))
    api.registry.register(SuspensionCollector(SuspensionCounts))
    registries: list[CollectorRegistry] = [api.registry, runner._registry]
    return {family.name: family for registry in registries for family in registry.collect()}


def expressions() -> list[tuple[str, str]]:
    found = [
        (f"{path.stem}: {panel['title']}", target["expr"])
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return found + [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_queried_metrics_exist(where: str, expression: str, metrics: dict[str, Metric]) -> None:
    names = set(re.findall(r"\b(?:ihgrpo|process)_\w+", expression))
    assert names or "up{" in expression
    for name in names:
        family = metrics.get(re.sub(r"_(total|bucket|sum|count)$", "", name)) or metrics[name]
        suffix = {"counter": "_total", "histogram": "_bucket"}.get(family.type, "")
        assert name == f"{family.name}{suffix}", f"{where}: {name} is a {family.type}"


def test_dashboards_have_data_source_and_instance_variables() -> None:
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        variables = {variable["name"]: variable for variable in board["templating"]["list"]}
        assert variables.keys() == {"datasource", "instance"}
        assert variables["datasource"]["type"] == "datasource"
        assert variables["instance"]["definition"].startswith("label_values(ihgrpo_")
        for panel in board["panels"]:
            assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
            for target in panel["targets"]:
                for name, labels in re.findall(r"\b((?:ihgrpo|process)_\w+)(\{[^}]*\})?", target["expr"]):
                    assert 'instance=~"$instance"' in labels, f"{panel['title']}: {name}"


def test_panels_have_unique_positions_and_titles() -> None:
    for path in DASHBOARDS:
        panels = json.loads(path.read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)


def test_every_alert_has_a_remedy() -> None:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["hint"]
            assert rule["labels"]["severity"] in ("page", "warn", "info")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", ALERTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
