"""Published schemas match the data that is sent and saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from service.api.chat.choice_builder import executed_tool, waiting_tool
from service.api.schemas import SCHEMAS, CalledTool, FinishedTool, WaitingTool, deferral, executed_tools
from service.deferral.policy import FILE_NAME, DeferralPolicy
from service.engines.checkpoint import quickstart
from service.episode.events import CodeToolCall, ExecutedTool, InvokedBlock
from service.sandbox.base import FlushFiles, OutputFile

BLOCK = InvokedBlock("print(1)", 7, 1.5)


def tool(**changes: Any) -> ExecutedTool:
    given: dict[str, Any] = {
        "id": "exec_1", "blocks": (BLOCK,), "delayed": 1, "output": "1", "status": "ok", "started_at": 1.6,
        "finished_at": 1.7, "flushed_at": 1.65, "wall_ms": 100.0, "waited_ms": 50.0, "runs": ((1.6, 1.7),),
    }  # fmt: skip
    return ExecutedTool(**{**given, **changes})


@pytest.mark.parametrize(
    "sent",
    [
        executed_tool(tool(), 0),
        executed_tool(tool(status="sandbox_error", started_at=None, finished_at=None, runs=()), 3),
        waiting_tool("exec_1", 0, [BLOCK], "pending"),
        waiting_tool("exec_1", 0, [], "running"),
    ],
)
def test_executed_tools_match_the_published_schema(sent: dict[str, Any]) -> None:
    jsonschema_rs.validate(executed_tools(), sent)


CALLED = CodeToolCall("call_1", "add", {"a": 1}, True, 2.0, 3.0, "ok", output=[1, None])


def test_all_fields_are_published() -> None:
    files = FlushFiles(
        (OutputFile("f", "c", "/sandbox/a", 1, "0" * 64, "text/plain"),), ("<table>",), (("l", "symlink"),)
    )
    calls = (replace(CALLED, by_client=True), CALLED)
    full = executed_tool(tool(files=files, calls=calls, pauses=((1.0, 2.0),)), 0)
    assert full.keys() == FinishedTool.model_fields.keys()
    assert full["calls"][0].keys() == CalledTool.model_fields.keys()  # type: ignore[index]
    jsonschema_rs.validate(executed_tools(), full)
    assert waiting_tool("x", 0, [BLOCK], "pending").keys() == WaitingTool.model_fields.keys()


def test_schema_rejects_other_statuses() -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(executed_tools(), waiting_tool("x", 0, [BLOCK], "done"))


def test_saved_policy_matches_the_published_schema(tmp_path: Path) -> None:
    DeferralPolicy().save(tmp_path)
    for folder in (tmp_path, quickstart()):
        policy = DeferralPolicy.load(folder)
        jsonschema_rs.validate(deferral(), policy.model_dump(mode="json"))
    jsonschema_rs.validate(deferral(), json.loads((tmp_path / FILE_NAME).read_text()))


def test_schemas_are_valid_and_versioned() -> None:
    for name, make in SCHEMAS.items():
        jsonschema_rs.meta.validate(make())
        assert make()["$id"] == f"urn:ih-grpo:{name.removesuffix('.json').replace('-', ':')}"
