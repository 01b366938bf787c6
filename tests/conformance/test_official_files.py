"""Objects of the Files and Containers APIs, and responses with files, checked against OpenAI's document."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import jsonschema_rs
import pytest

from tests.conformance import official
from tests.support.fake_files import PNG, FakeFileSandbox
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import make_app, serve


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient, None]:
    code = f"work['out.txt'] = b'1'; show('image/png', {PNG!r}); show('text/html', b'<table>')\nprint(1)"
    engine = ScriptedEngine(f"Run\n```python\n{code}\n```<tool_call>", "See out.txt." + EOS)
    app = make_app(engine, FakeFileSandbox())  # type: ignore[arg-type]
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url, timeout=60) as client:
        yield client


def check(name: str, answer: httpx.Response | dict[str, Any]) -> Any:
    body = answer
    if isinstance(answer, httpx.Response):
        assert answer.status_code == 200, answer.text
        body = answer.json()
    errors = jsonschema_rs.validator_for(official.schema(name), offline=True).iter_errors(body)
    assert [f"{error.instance_path}: {error.message[:300]}" for error in errors] == []
    return body


async def test_files(client: httpx.AsyncClient) -> None:
    form = {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    sent = await client.post("/v1/files", data=form, files={"file": ("a.csv", b"1,2")})
    file = check("OpenAIFile", sent)
    check("OpenAIFile", await client.get(f"/v1/files/{file['id']}"))
    check("ListFilesResponse", await client.get("/v1/files"))
    check("DeleteFileResponse", await client.delete(f"/v1/files/{file['id']}"))


async def test_containers(client: httpx.AsyncClient) -> None:
    made = check(
        "ContainerResource", await client.post("/v1/containers", json={"name": "x", "memory_limit": "1g"})
    )
    check("ContainerListResource", await client.get("/v1/containers"))
    files = f"/v1/containers/{made['id']}/files"
    file = check("ContainerFileResource", await client.post(files, files={"file": ("a.csv", b"1")}))
    check("ContainerFileResource", await client.get(f"{files}/{file['id']}"))
    check("ContainerFileListResource", await client.get(files))
    assert (await client.delete(f"{files}/{file['id']}")).json()["deleted"] is True


@pytest.mark.parametrize("stream", [False, True])
async def test_response_with_files(client: httpx.AsyncClient, stream: bool) -> None:
    body = {
        "model": "scripted",
        "input": "Go",
        "stream": stream,
        "tools": [{"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "1g"}}],
        "include": ["code_interpreter_call.outputs"],
    }
    answer = await client.post("/v1/responses", json=body)
    if not stream:
        *_, call, message = answer.json()["output"]
        check("CodeInterpreterToolCall", call)
        check("OutputMessage", message)
        assert [output["type"] for output in call["outputs"]] == ["logs", "image"]
        assert len(message["content"][0]["annotations"]) == 2
        return
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    cited = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert len(cited) == 2
    for event in cited:
        check("ResponseOutputTextAnnotationAddedEvent", event)
