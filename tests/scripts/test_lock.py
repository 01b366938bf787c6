"""requirements/ agrees with pyproject.toml, has hashes, and is independent of any index."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPO = Path(__file__).resolve().parents[2]
LOCKS = REPO / "requirements"
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
requirements = runpy.run_path(str(REPO / "deploy/requirements.py"), run_name="requirements")["requirements"]


def locked(name: str) -> dict[str, list[str]]:
    """Canonical name to versions (one per environment) in a lock."""
    text = (LOCKS / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line.partition("--hash")[0])
            found.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    return found


@pytest.mark.parametrize("name", ["cpu", "train", "dev", "vllm", "release"])
def test_every_line_is_a_pin_with_hashes(name: str) -> None:
    text = (LOCKS / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) > 30
    pin = r"[a-z0-9._-]+==[^\s;]+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+"
    assert [line[:100] for line in lines if not re.fullmatch(pin, line)] == []


@pytest.mark.parametrize(
    ("name", "extra"), [("cpu", "cpu"), ("train", "train"), ("dev", "dev"), ("vllm", "vllm-test")]
)
def test_versions_satisfy_pyproject(name: str, extra: str) -> None:
    found = {**locked(name), **locked("torch")}
    build = PROJECT["dependency-groups"]["build"]
    for line in [*requirements(PROJECT["project"], [extra]), *build]:
        wanted = Requirement(line)
        versions = found.get(canonicalize_name(wanted.name))
        assert versions, f"{line} is not locked: make lock"
        for version in versions:
            assert wanted.specifier.contains(version), f"{line} is locked at {version}: make lock"


@pytest.mark.parametrize("name", ["cpu", "train", "dev", "vllm", "release"])
def test_only_opentelemetry_is_a_prerelease(name: str) -> None:
    versions = [(package, version) for package, pins in locked(name).items() for version in pins]
    unstable = [package for package, version in versions if Version(version).is_prerelease]
    assert [package for package in unstable if not package.startswith("opentelemetry-")] == []


@pytest.mark.parametrize("extra", ["cpu", "train"])
def test_extras_agree_on_versions(extra: str) -> None:
    dev = locked("dev")
    assert {name: versions for name, versions in locked(extra).items() if dev[name] != versions} == {}


def test_llama_cpp_satisfies_pyproject() -> None:
    (wanted,) = (
        Requirement(line)
        for line in requirements(PROJECT["project"], ["gguf"])
        if line.startswith("llama-cpp-python")
    )
    found = locked("gguf")
    assert all(wanted.specifier.contains(version) for version in found["llama-cpp-python"])
    dev = locked("dev")
    assert {name: pins for name, pins in found.items() if dev.get(name, pins) != pins} == {}


@pytest.mark.parametrize("path", sorted(LOCKS.iterdir()), ids=lambda path: path.name)
def test_names_no_index(path: Path) -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links|(?<![\w-])@", path.read_text(encoding="utf-8"))
