"""The complete report, as a table and as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from service.cli.main import app
from service.doctor import CheckResult, report

WELL = CheckResult("port", "ok", "127.0.0.1:8000 is free")
DOUBTFUL = CheckResult("memory", "warn", "little", "lower max_containers")
BROKEN = CheckResult("docker", "fail", "nothing [answers]", "start Docker")


def test_table_shows_hints_and_escapes_markup() -> None:
    text = io.StringIO()
    report.show([WELL, DOUBTFUL, BROKEN], Console(file=text, width=200))
    for words in ("is free", "lower max_containers", "nothing [answers]", "start Docker"):
        assert words in text.getvalue()


def test_warning_is_not_a_failure() -> None:
    assert not report.failed([WELL, DOUBTFUL])
    assert report.failed([WELL, BROKEN])


def test_json_output_and_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    done = CliRunner().invoke(app, ["doctor", "--json", "--sandbox", "in-process", "--port", "0"])
    output = json.loads(done.stdout)
    assert done.exit_code == 1
    assert output["ok"] is False
    verdicts = {check["check"]: check["verdict"] for check in output["checks"]}
    assert verdicts["docker"] == "fail"
    assert verdicts["model"] == "ok"
    assert "isolation" not in verdicts


def test_invalid_settings_are_reported_as_by_serve() -> None:
    done = CliRunner().invoke(app, ["doctor", "--port", "70000"])
    assert done.exit_code == 2
