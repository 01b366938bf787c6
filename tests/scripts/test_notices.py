"""Notices for third-party software, and the bill of materials."""

from __future__ import annotations

import json
import re
import runpy
from hashlib import sha256
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
NOTICES = runpy.run_path(str(REPO / "deploy/notices.py"), run_name="notices")
TEXT = (REPO / "THIRD_PARTY_NOTICES").read_text(encoding="utf-8")
COMPONENTS = NOTICES["components"]()


@pytest.mark.parametrize(
    "path", sorted((REPO / "service").rglob("manifest.json")), ids=lambda path: path.parent.name
)
def test_manifests_describe_the_files_beside_them(path: Path) -> None:
    for entry in json.loads(path.read_text(encoding="utf-8")).values():
        for name, digest in entry["files"].items():
            assert sha256((path.parent / name).read_bytes()).hexdigest() == digest, name


def test_every_library_of_the_web_pages_has_its_licence_text() -> None:
    assert "swagger-ui-dist" in {part.name for part in COMPONENTS}
    for part in COMPONENTS:
        assert f"{part.name} {part.version}" in TEXT
        assert part.license_texts
        assert part.license_texts[0].splitlines()[0].strip() in TEXT


def test_every_minified_script_belongs_to_a_manifest() -> None:
    known = {part.folder / name for part in COMPONENTS for name in part.files}
    minified = [
        path for path in (REPO / "service").rglob("*.js") if re.search(r"\.min\.|-bundle\.", path.name)
    ]
    assert [path for path in minified if path not in known] == []


def test_every_package_has_a_known_licence_without_duties_for_the_code() -> None:
    lines = TEXT.partition("2. Python packages")[2].splitlines()
    packages = dict(
        match.groups()
        for line in lines
        if (match := re.fullmatch(r"([a-z0-9-]+): (.+?)(?: \(http\S+\))?", line))
    )
    assert {"fastapi", "torch", "trl", "asyncpg", "opentelemetry-sdk"} <= set(packages)
    assert "pytest" not in packages
    assert [
        name for name, found in packages.items() if "UNKNOWN" in found or re.search(r"\bA?GPL", found)
    ] == []


def test_needed_packages_include_indirect_ones_and_extras() -> None:
    found = NOTICES["needed"](
        ["fastapi>=0.1", "sqlalchemy[asyncio]", "pytest ; sys_platform == 'win32'", "not-installed"]
    )
    assert {"fastapi", "starlette", "pydantic-core", "greenlet"} <= found
    assert not {"pytest", "not-installed"} & found


def test_sbom_entries_identify_the_npm_packages() -> None:
    part = NOTICES["Component"]("@a/b", "1.2", "(MIT OR Apache-2.0)", "sha512-AAEC", REPO, ())
    assert list(NOTICES["sbom_components"]([part])) == [
        {
            "type": "library",
            "bom-ref": "pkg:npm/%40a/b@1.2",
            "name": "@a/b",
            "version": "1.2",
            "purl": "pkg:npm/%40a/b@1.2",
            "licenses": [{"expression": "MIT OR Apache-2.0"}],
            "hashes": [{"alg": "SHA-512", "content": "000102"}],
        }
    ]
