"""The tree is the architecture: layers, cycles, names and sizes of modules.

The import contracts are in ``pyproject.toml`` (``[tool.importlinter]``).
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("service", "trainer", "sandbox_image")
LARGEST, SMALLEST = 600, 40

SIZE_EXCEPTIONS = {
    "service/cli/chat.py": "one module per command",
    "service/common/json.py": "the JSON encoder that api and store share",
    "service/common/machine.py": "memory and cores, shared by doctor and engines",
    "service/common/process_id.py": "process identity, shared by sandbox and store",
    "service/store/migrations/env.py": "alembic's entry point",
    "service/store/migrations/versions/r0002_reply_ids.py": "one migration a module",
}
"""Modules outside of the size limits, and the reasons."""


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_layers_and_cycles(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_class_names_are_unique() -> None:
    places = defaultdict(set)
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(name(path))
    repeated = {cls: sorted(where) for cls, where in places.items() if len(where) > 1}
    assert repeated == {}


def test_module_sizes() -> None:
    lines = {
        name(path): path.read_text(encoding="utf-8").count("\n")
        for path in modules()
        if path.name not in ("__init__.py", "__main__.py")
    }
    outside = {path: count for path, count in lines.items() if not SMALLEST <= count <= LARGEST}
    assert {path: count for path, count in outside.items() if path not in SIZE_EXCEPTIONS} == {}


def test_size_exceptions_are_needed() -> None:
    assert [path for path in SIZE_EXCEPTIONS if not (ROOT / path).is_file()] == []


def test_every_module_is_in_a_part_of_the_architecture() -> None:
    homeless = {
        name(path)
        for package in ("service", "trainer")
        for path in (ROOT / package).glob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    assert homeless == set()
