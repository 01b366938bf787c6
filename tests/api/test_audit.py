"""The audit log: what it contains, and what it never contains."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from service.api.audit import Audit, AuditLog
from service.api.auth import ApiKeys, parse_keys
from service.server.settings import Settings
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve
from tests.support.stored import Clock


def app_with(folder: Path, **more: Any) -> Any:
    return make_app(
        ScriptedEngine("secret reply" + EOS),
        ScriptedSandbox(lambda blocks: printed("")),
        api_keys="sk-one name=alice,sk-two name=ops scope=admin",
        audit_dir=str(folder / "audit"),
        files_url=str(folder / "files"),
        **more,
    )


def entries(folder: Path) -> list[Any]:
    [path] = (folder / "audit").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_logs_actions_with_key_and_address_but_without_content(tmp_path: Path) -> None:
    async with serve(app_with(tmp_path), key="sk-one") as served:
        file = await served.openai.files.create(file=("secret.txt", b"secret bytes"), purpose="user_data")
        response = await served.openai.responses.create(model="scripted", input="secret question")
        await served.openai.responses.delete(response.id)
        await served.openai.files.delete(file.id)
        with pytest.raises(openai.NotFoundError):
            await served.openai.files.delete("file-none")
        async with httpx.AsyncClient(base_url=served.url) as client:
            await client.post("/admin/reload", headers={"x-api-key": "sk-one"}, json={"path": "x"})
            await client.post("/admin/reload", headers={"x-api-key": "sk-two"}, json={"path": "x"})
            await client.get("/v1/models", headers={"x-api-key": "sk-wrong-secret"})
    found = entries(tmp_path)
    assert [(one["action"], one["result"], one.get("key"), one.get("target")) for one in found] == [
        ("server.start", "ok", None, None),
        ("file.create", "ok", "alice", file.id),
        ("response.delete", "ok", "alice", f"/v1/responses/{response.id}"),
        ("file.delete", "ok", "alice", f"/v1/files/{file.id}"),
        ("file.delete", "failed", "alice", "/v1/files/file-none"),
        ("request.authorize", "denied", "alice", "POST /admin/reload"),
        ("admin.reload", "failed", "ops", "/admin/reload"),
        ("request.authenticate", "denied", None, "GET /v1/models"),
    ]
    assert found[0]["keys"] == ["alice", "ops"]
    assert found[1]["address"] == "127.0.0.1"
    assert found[1]["request_id"].startswith("req_")
    assert len(found[1]["key_id"]) == len("sha256:") + 64
    assert "secret" not in json.dumps(found)
    assert "sk-" not in json.dumps(found)


async def test_denials_are_bounded_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.audit._DENIALS_PER_MINUTE", 3)
    clock = Clock()
    log = AuditLog(tmp_path / "audit", days=1, clock=clock)
    app = Audit(ApiKeys(FastAPI(), parse_keys(["sk-one"], hashed=False)), log)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for _ in range(10):
            assert (await client.get("/v1/models")).status_code == 401
        clock.now += 60
        await client.get("/v1/models")
    denials = [one for one in entries(tmp_path) if one["action"] == "request.authenticate"]
    assert [one.get("suppressed") for one in denials] == [None, None, None, 7]


async def test_files_are_per_day_and_removed_when_they_are_old(tmp_path: Path) -> None:
    clock = Clock(datetime(2026, 7, 25, 12, tzinfo=UTC).timestamp())
    log = AuditLog(tmp_path / "a", days=2, clock=clock)
    for _ in range(4):
        log.record("x.create", target="1", missing=None)
        clock.now += 86_400
    clock.now -= 86_400
    (tmp_path / "a" / "notes.txt").touch()
    await log.clean()
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"audit-2026-07-{day}.jsonl" for day in (26, 27, 28)] + ["notes.txt"]
    (tmp_path / "a" / names[0]).rename(tmp_path / "moved")  # as logrotate does
    log.record("x.create", target="2")
    assert json.loads((tmp_path / "moved").read_text()) == {
        "time": "2026-07-26T12:00:00.000+00:00",
        "action": "x.create",
        "result": "ok",
        "target": "1",
    }


def test_unusable_directory_is_reported_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="audit_dir"):
        Settings(audit_dir=tmp_path / "file").audit_log()
    assert Settings().audit_log() is None
