"""The Responses API with the quickstart checkpoint and real containers, through ``ih-grpo serve``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.conftest import TIMEOUT_S
from tests.e2e.server import ServerProcess, start
from tests.support.response_events import checked, kinds

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
CODE_TOOL: Any = [{"type": "code_interpreter", "container": {"type": "auto"}}]
OUTPUTS: Any = ["code_interpreter_call.outputs"]
QUESTION = "What is 739184 times 52967 plus 90412 times 33771?"
RESULT = str(739184 * 52967 + 90412 * 33771)


def ask(client: openai.OpenAI, **options: Any) -> Any:
    request = {"model": "quickstart", "input": QUESTION, "tools": CODE_TOOL, "temperature": 0, **options}
    return client.responses.create(**request)


def test_deferred_episode_has_openais_events(
    client: openai.OpenAI, server: ServerProcess, containers: Callable[[ServerProcess], set[str]]
) -> None:
    events = [event.to_dict() for event in ask(client, stream=True, include=OUTPUTS)]
    final = checked(events)
    calls = [item for item in final["output"] if item["type"] == "code_interpreter_call"]
    assert final["status"] == "completed"
    assert any(call["outputs"] == [{"type": "logs", "logs": RESULT}] for call in calls)
    assert all(call["container_id"].startswith("cntr_") for call in calls)
    assert RESULT in final["output"][-1]["content"][0]["text"]
    first = [name for name in kinds(events) if name.startswith("code_interpreter_call")]
    end = first.index("code_interpreter_call.completed") + 1
    blocks = first[:end].count("code_interpreter_call_code.delta")
    assert blocks >= 2
    assert first[:end] == [
        "code_interpreter_call.in_progress",
        *["code_interpreter_call_code.delta"] * blocks,
        "code_interpreter_call_code.done",
        "code_interpreter_call.interpreting",
        "code_interpreter_call.completed",
    ]


def test_no_code_runs_without_the_tool(client: openai.OpenAI) -> None:
    response = ask(client, tools=[], max_output_tokens=200)
    assert {item.type for item in response.output} == {"message"}


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'responses.db'}"


def test_killed_server_leaves_no_running_response(
    checkpoint: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IHGRPO_STORE_URL", store_url)
    first = start(checkpoint, "--warm-containers", "0")
    with openai.OpenAI(base_url=f"{first.url}/v1", api_key="none", timeout=TIMEOUT_S) as client:
        done = ask(client, background=True)
        while (whole := client.responses.retrieve(done.id, include=OUTPUTS)).status != "completed":
            assert whole.status in ("queued", "in_progress")
            time.sleep(0.1)
        running = ask(client, background=True)
        first.process.kill()
        first.process.wait()
    second = start(checkpoint, "--warm-containers", "0")
    try:
        with openai.OpenAI(base_url=f"{second.url}/v1", api_key="none", timeout=TIMEOUT_S) as client:
            assert client.responses.retrieve(done.id, include=OUTPUTS).to_dict() == whole.to_dict()
            cut = client.responses.retrieve(running.id)
            assert (cut.status, cut.error is not None) == ("failed", True)
            again = ask(client, previous_response_id=done.id)
            assert again.status in ("completed", "incomplete")
    finally:
        second.stop()
