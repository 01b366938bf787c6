from __future__ import annotations

import json
import subprocess
import sys

import pytest

CODE = """
import logging, structlog
from service.common import logs
logs.configure("info", {format!r})
def handle(prompt):
    raise ValueError("no")
structlog.get_logger("a").info("request", status=200)
structlog.get_logger("a").debug("unseen")
logging.getLogger("lib").warning("old %s", "style")
try:
    handle("top secret")
except ValueError:
    structlog.get_logger("a").exception("failed")
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_logs_have_one_format_and_no_local_variables(log_format: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CODE.format(format=log_format)], capture_output=True, text=True, check=True
    )
    assert run.stdout == ""
    assert "old style" in run.stderr
    assert "ValueError: no" in run.stderr
    assert "unseen" not in run.stderr
    # The source line is shown, the variable's value is not.
    assert "prompt = " not in run.stderr
    if log_format == "json":
        events = [json.loads(line) for line in run.stderr.splitlines()]
        assert [event["event"] for event in events] == ["request", "old style", "failed"]
        assert events[0]["status"] == 200
