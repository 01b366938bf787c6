"""``ih-grpo keys`` and ``ih-grpo store`` on a key file and an SQLite store."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.api.auth import QUOTAS, KeyQuota, parse_keys
from service.cli.main import app
from service.store.responses import ResponseStore
from service.store.usage import Consumption, UsageStore
from tests.support.stored import stored

runner = CliRunner()
A, B = "a" * 64, "b" * 64


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# keys\nsha256:{A} name=alice rpm=5\n\nsha256:{B} name=bob\n")
    path.chmod(0o640)
    monkeypatch.setenv("IHGRPO_API_KEYS_FILE", str(path))
    monkeypatch.setenv("IHGRPO_STORE_URL", f"sqlite:///{tmp_path / 'store' / 'responses.db'}")
    monkeypatch.setenv("IHGRPO_AUDIT_DIR", str(tmp_path / "audit"))
    monkeypatch.setenv("COLUMNS", "200")
    return path


def run(*args: str, code: int = 0) -> str:
    result = runner.invoke(app, [*args])
    assert result.exit_code == code, result.output
    return result.output


def audited(tmp_path: Path) -> list[tuple[str, str]]:
    [path] = (tmp_path / "audit").iterdir()
    return [(one["action"], one["target"]) for one in map(json.loads, path.read_text().splitlines())]


def test_update_changes_one_line(key_file: Path, tmp_path: Path) -> None:
    run("keys", "update", "alice", "--tokens-per-day", "100", "--stored-bytes", "5")
    assert key_file.stat().st_mode & 0o777 == 0o640
    run("keys", "update", f"sha256:{A}", "--tokens-per-day", "7", "--unset", "rpm")
    text = key_file.read_text()
    assert text == f"# keys\nsha256:{A} name=alice stored_bytes=5 tokens_per_day=7\n\nsha256:{B} name=bob\n"
    alice = parse_keys(text.splitlines(), hashed=True)[0]
    assert (alice.quota.tokens_per_day, alice.quota.stored_bytes, alice.requests_per_minute) == (7, 5, None)
    assert "no key" in run("keys", "update", "carol", code=2)
    assert audited(tmp_path) == [("key.update", f"sha256:{A}")] * 2


@pytest.mark.parametrize("command", [("create", "--name", "ci"), ("update", "alice")])
def test_commands_have_an_option_for_each_limit(key_file: Path, command: tuple[str, ...]) -> None:
    limits = ("rpm", "concurrency", *QUOTAS)
    options = [word for name in limits for word in (f"--{name.replace('_', '-')}", "7")]
    line = runner.invoke(app, ["keys", *command, *options]).stdout.strip()
    [key] = parse_keys([line], hashed=True)
    assert (key.requests_per_minute, key.concurrency, key.quota) == (7, 7, KeyQuota(7, 7, 7, 7, 7))


def test_revoke_removes_the_line_and_prints_the_id(key_file: Path, tmp_path: Path) -> None:
    assert run("keys", "revoke", "bob").strip() == f"sha256:{B}"
    assert key_file.read_text() == f"# keys\nsha256:{A} name=alice rpm=5\n\n"
    assert audited(tmp_path) == [("key.revoke", f"sha256:{B}")]


def test_created_key_has_quotas(key_file: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["keys", "create", "--name", "ci", "--sandbox-seconds-per-month", "60"])
    [made] = parse_keys([result.stdout.strip()], hashed=True)
    assert made.quota.sandbox_seconds_per_month == 60
    assert audited(tmp_path) == [("key.create", f"sha256:{made.owner}")]


def test_usage_and_deletion_of_a_key(key_file: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store' / 'responses.db'}"

    async def fill() -> None:
        store = ResponseStore(url)
        await store.start()
        await store.put(stored("resp_1", owner=A, expires_at=10e10))
        await UsageStore(store.engine, days=9).add(A, "m", Consumption(3, 1234, 56, 7.5))
        await store.stop()

    asyncio.run(fill())
    shown = run("keys", "usage")
    row = next(line for line in shown.splitlines() if "alice" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][1:5] == ["3", "1234", "56", "7.5"]
    assert "bob" in shown
    assert "bob" not in run("keys", "usage", "alice")
    counted = run("keys", "delete-data", "alice", "--dry-run")
    assert "responses            1" in counted
    assert "Deleted" not in counted
    assert runner.invoke(app, ["keys", "delete-data", "alice"], input="n\n").exit_code == 1
    run("keys", "delete-data", f"sha256:{A}", "--yes")
    assert "responses            0" in run("keys", "delete-data", "alice", "--dry-run")
    assert ("data.delete", f"sha256:{A}") in audited(tmp_path)
    assert "no key" in run("keys", "delete-data", "carol", code=2)


def test_backup_and_restore_commands(key_file: Path, tmp_path: Path) -> None:
    assert "no store" in run("store", "backup", str(tmp_path / "backup"), code=2)
    run("keys", "usage")  # creates the store
    assert "0 responses, 0 files" in run("store", "backup", str(tmp_path / "backup"))
    assert "already" in run("store", "restore", str(tmp_path / "backup"), code=2)
    run("store", "restore", str(tmp_path / "backup"), "--replace")
    run("store", "restore", str(tmp_path / "backup"), "--store-url", f"sqlite:///{tmp_path / 'new.db'}")
    assert (tmp_path / "new.db").is_file()
    assert [action for action, _ in audited(tmp_path)] == ["store.backup", "store.restore", "store.restore"]
