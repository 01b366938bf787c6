"""The secrets of the stack: created once, readable only by the services; no public API without keys."""

from __future__ import annotations

import hashlib
import os
import runpy
import stat
from pathlib import Path
from typing import Any

import pytest

from service.api.auth import find_key, new_key, parse_keys

INIT = Path(__file__).parents[2] / "deploy/init.py"
NAMES = ("api-keys", "grafana-password", "metrics-key", "pgpass", "postgres-password", "runner-token")


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(os, "fchown", lambda *_: None)  # tests may not run as root
    return runpy.run_path(str(INIT), run_name="init")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "secrets"
    made.mkdir()
    return made


def test_secrets_are_created_once_and_differ(init: dict[str, Any], folder: Path, given: Path) -> None:
    init["prepare"](folder, given, "127.0.0.1")
    first = {name: (folder / name).read_text() for name in NAMES}
    init["prepare"](folder, given, "127.0.0.1")
    assert {name: (folder / name).read_text() for name in NAMES} == first
    made = [first[name] for name in ("grafana-password", "metrics-key", "postgres-password", "runner-token")]
    assert len(set(made)) == 4
    assert all(len(secret.strip()) == 64 for secret in made)
    assert first["api-keys"] == ""


def test_only_the_services_can_read_the_secrets(init: dict[str, Any], folder: Path, given: Path) -> None:
    init["prepare"](folder, given, "127.0.0.1")
    for name in NAMES:
        mode = stat.S_IMODE((folder / name).stat().st_mode)
        assert mode == (0o600 if name == "pgpass" else 0o440)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)


def test_recovers_from_an_interrupted_run(init: dict[str, Any], folder: Path, given: Path) -> None:
    (folder / ".runner-token.new").write_text("half")
    (folder / "runner-token").write_text("")
    init["prepare"](folder, given, "127.0.0.1")
    assert len((folder / "runner-token").read_text().strip()) == 64


def test_keeps_given_keys_and_adds_one_for_prometheus(
    init: dict[str, Any], folder: Path, given: Path
) -> None:
    key = new_key()
    (given / "api-keys").write_text(f"# ours\nsha256:{hashlib.sha256(key.encode()).hexdigest()} name=ci\n\n")
    init["prepare"](folder, given, "0.0.0.0")
    keys = parse_keys((folder / "api-keys").read_text().splitlines(), hashed=True)
    assert [known.name for known in keys] == ["ci", "prometheus"]
    assert find_key(keys, key) == keys[0]
    assert find_key(keys, (folder / "metrics-key").read_text().strip()) == keys[1]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_refuses_public_address_without_keys(
    init: dict[str, Any], folder: Path, given: Path, address: str
) -> None:
    with pytest.raises(SystemExit, match="no API key"):
        init["prepare"](folder, given, address)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "[::1]", "127.0.0.2"])
def test_loopback_needs_no_key(init: dict[str, Any], folder: Path, given: Path, address: str) -> None:
    init["prepare"](folder, given, address)


def test_runner_token_and_authorities_can_be_given(init: dict[str, Any], folder: Path, given: Path) -> None:
    init["prepare"](folder, given, "127.0.0.1")
    generated = (folder / "runner-token").read_text()
    (given / "runner-token").write_text("shared-with-other-hosts\n")
    (given / "runner-ca.pem").write_text("a certificate")
    init["prepare"](folder, given, "127.0.0.1")
    assert (folder / "runner-token").read_text() == "shared-with-other-hosts\n" != generated
    assert (folder / "runner-ca.pem").read_text() == "a certificate"
    assert stat.S_IMODE((folder / "runner-token").stat().st_mode) == 0o440
    (given / "runner-token").write_text(" \n")  # empty: the last one is kept
    init["prepare"](folder, given, "127.0.0.1")
    assert (folder / "runner-token").read_text() == "shared-with-other-hosts\n"
