"""The prose lint over the text of the project, one area at a time, and tests of the lint itself."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.docs.blocks import REPO
from tests.docs.prose import files, violations

AREAS: Final = {
    "docs": "README.md CHANGELOG.md CONTRIBUTING.md AGENTS.md mkdocs.yml docs checkpoints secrets .github",
    "folder READMEs": "deploy/certs deploy/wheels sandbox_image/certs service/api/swagger_ui/README.md",
    "recipes": "recipes",
    "docs tests": "tests/docs",
    "deploy": "deploy observe docker-compose.yml .env.example",
    "scripts": "scripts Makefile .ci pyproject.toml .pre-commit-config.yaml",
    "service": "service docs/reference/settings.md",
    "trainer": "trainer",
    "sandbox_image": "sandbox_image",
    "benchmarks": "benchmarks docs/images/learning.svg",
    "tests": "tests docs/reference/hostile-code.md",
}
"""Files and folders by area. A generated file belongs to the area of its source."""
GENERATED: Final = {
    REPO / f"docs/{name}"
    for name in ("reference/settings.md", "reference/hostile-code.md", "images/learning.svg")
}


def area_files(area: str) -> list[Path]:
    found = files([REPO / name for name in AREAS[area].split()])
    return [path for path in found if area != "docs" or path not in GENERATED]


@pytest.mark.parametrize("area", AREAS)
def test_area_has_no_violations(area: str) -> None:
    checked = area_files(area)
    assert checked
    assert [line for path in checked for line in violations(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "The client is told why.",
        "The image is built anew.",
        "Port 0x1 is no port.",
        "No container could be had.",
        "This hangs on the limit.",
        "Everything save for the last line.",
        "The episode goes on in a new container.",
        "`x` is no `y`.",
        "There is one call a flush.",
        "The default is used where unset.",
        "Five runs start at once.",
        "It runs in a process of its own.",
        "Any value is accepted, whatever its type.",
        "The field is empty where there are none.",
        "Set other addresses than loopback.",
        "The limit is a maximum of sessions.",
        "It allows 60 requests a minute.",
        "The file is kept, for it is needed.",
        "The page loads nothing but its own files.",
        "A model decides itself when its code runs.",
    ],
)
def test_finds_phrase_in_markdown(tmp_path: Path, line: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{line}\n")
    (found,) = violations(page)
    assert found.startswith(f"{page}:3: ")


@pytest.mark.parametrize(
    "line",
    [
        "There is no setting for this.",
        "It is no longer supported.",
        "Save the file, then run `ih-grpo told anew`.",
        "The server tells vLLM to stop.",
        "The maximum of the two values is used, at most 60 requests per minute.",
        "It repeats the content of its own prompt and requests a run.",
        "[Link](told/anew.md)",
    ],
)
def test_accepts_plain_markdown(tmp_path: Path, line: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{line}\n\n```text\nis told anew\n```\n")
    assert violations(page) == []


def test_finds_phrase_across_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("The episode goes\non after an error.\n")
    assert violations(page) == [f"{page}:1: 'goes on': write continue or resume"]


def test_finds_docstrings_names_comments_and_messages(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""Module."""\n'
        "LIMIT = 3\n"
        '"""How many there are."""\n'
        "def run(told: str) -> None:\n"
        '    """What runs."""\n'
        "    # started anew\n"
        '    raise ValueError(f"{told} is no number")\n'
        'TEXT = "told"\n'
    )
    assert violations(module) == [
        f"{module}:3: docstring opens with 'How': write a noun phrase or an imperative",
        f"{module}:4: name 'told': name what it holds or does",
        f"{module}:5: docstring opens with 'What': write a noun phrase or an imperative",
        f"{module}:6: 'anew': write again",
        f"{module}:7: 'is no n': write unknown, not a, or invalid",
    ]


def test_line_can_quote_a_phrase(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("# never write anew  # prose: ok\n")
    assert violations(module) == []


def test_accepts_neither_nor_in_messages_and_names(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('def is_neither_a_nor_b() -> str:\n    return f"it has neither {A} nor a file"\n')
    assert violations(module) == []


def test_model_texts_are_exempt_except_for_docstrings_and_comments(tmp_path: Path) -> None:
    module = tmp_path / "service/deferral/prompt.py"
    module.parent.mkdir(parents=True)
    module.write_text('"""It is built anew."""\nTEXT = "run it before you go on"\n# built anew\n')
    assert violations(module) == [f"{module}:1: 'anew': write again", f"{module}:3: 'anew': write again"]


def test_shell_script_without_suffix_is_checked(tmp_path: Path) -> None:
    script = tmp_path / "run"
    script.write_text("#!/bin/sh\necho 'built anew'\n")
    assert violations(script) == [f"{script}:2: 'anew': write again"]


def test_binary_and_unknown_files_are_skipped(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG told anew")
    assert violations(picture) == []
