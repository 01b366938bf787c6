"""Schemathesis against our own OpenAPI document: every route, right and wrong requests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conformance.suite import schemathesis

LEFT_OUT = (
    # Values that fit their fields may not fit together ('top_logprobs' without 'logprobs'), nor this server.
    "positive_data_acceptance",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_responses_match_the_document_and_errors_are_rejected(url: str, tmp_path: Path) -> None:
    options = ["--phases", "coverage,fuzzing", "--max-examples", "10", "--exclude-checks", ",".join(LEFT_OUT)]
    # The engine of this server is a script: new weights are not implemented, as its 501 says.
    options += ["--exclude-path", "/admin/reload"]
    run = schemathesis(f"{url}/openapi.json", url, tmp_path, *options)
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-2000:]
    assert re.search(r"[1-9]\d* generated, [1-9]\d* passed", run.stdout), run.stdout
