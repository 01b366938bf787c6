"""Copy the playground's libraries from their npm packages to service/playground/static/vendor/.

Without arguments the versions in the manifest are copied again; a package whose integrity differs from the
manifest is rejected. ``python deploy/vendor.py katex@0.19.2`` changes a version. Files are copied
unchanged, each package with its licence, and the manifest records their SHA-256. Requires npm.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[1] / "service/playground/static/vendor"
MANIFEST = VENDOR / "manifest.json"
FILES = {
    "markdown-it": ["dist/browser/markdown-it.umd.min.js"],
    "katex": ["dist/katex.min.js", "dist/katex.min.css", "dist/fonts/*.woff2"],
    "@highlightjs/cdn-assets": ["highlight.min.js"],
    "dompurify": ["dist/purify.min.js"],
}
"""Files of each package. Fonts keep their folder, because the style sheet names it."""


def main(wanted: list[str]) -> None:
    """Copy the packages. Each entry of ``wanted`` is a name and a version, joined by ``@``."""
    known = json.loads(MANIFEST.read_text("utf-8")) if MANIFEST.is_file() else {}
    versions = {name: entry["version"] for name, entry in known.items()}
    versions |= dict(name.rsplit("@", 1) for name in wanted)
    if unknown := set(versions) - set(FILES):
        raise SystemExit(f"not a library of the playground: {', '.join(sorted(unknown))}")
    if missing := set(FILES) - set(versions):
        raise SystemExit(f"a version is needed: {', '.join(f'{name}@VERSION' for name in sorted(missing))}")
    if VENDOR.exists():
        shutil.rmtree(VENDOR)
    (VENDOR / "licenses").mkdir(parents=True)
    manifest = {name: copy(name, versions[name]) for name in FILES}
    for name, entry in manifest.items():
        same = name in known and known[name]["version"] == entry["version"]
        if same and known[name]["integrity"] != entry["integrity"]:
            raise SystemExit(f"{name}: the package differs from the one in the manifest; restore the folder")
    MANIFEST.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def copy(name: str, version: str) -> dict[str, object]:
    """Copy the files of one package and return its entry in the manifest."""
    with tempfile.TemporaryDirectory() as work:
        command = ["npm", "pack", "--json", "--silent", f"{name}@{version}"]
        done = subprocess.run(command, cwd=work, check=True, capture_output=True)  # noqa: S603
        packed = json.loads(done.stdout)[0]
        with tarfile.open(Path(work) / packed["filename"]) as archive:
            archive.extractall(work, filter="data")
        package = Path(work) / "package"
        found: dict[Path, Path] = {}
        for pattern in FILES[name]:
            for file in sorted(package.glob(pattern)):
                found[Path("fonts" if file.suffix == ".woff2" else "") / file.name] = file
        found[Path("licenses") / f"{name.strip('@').replace('/', '-')}.txt"] = package / "LICENSE"
        for target, file in found.items():
            (VENDOR / target).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, VENDOR / target)
        licence = json.loads((package / "package.json").read_text("utf-8"))["license"]
    digests = {str(target): hashlib.sha256((VENDOR / target).read_bytes()).hexdigest() for target in found}
    return {"version": version, "license": licence, "integrity": packed["integrity"], "files": digests}


if __name__ == "__main__":
    main(sys.argv[1:])
