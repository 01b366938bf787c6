"""A package index on disk with tiny wheels, which pip and uv can resolve and install from."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path


class PackageIndex:
    """A folder in the layout of a package index. Its URL works for uv, and for pip behind an HTTP server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return self.folder.as_uri()

    def add(self, name: str, version: str, *, needs: str | None = None, code: str = "") -> None:
        """Add a wheel with one module that contains ``code``."""
        module = name.replace("-", "_")
        info = f"{module}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        if needs is not None:
            metadata += f"Requires-Dist: {needs}\n"
        page = self.folder / name
        page.mkdir(exist_ok=True)
        wheel = page / f"{module}-{version}-py3-none-any.whl"
        files = {
            f"{module}.py": code,
            f"{info}/METADATA": metadata,
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, content in files.items():
                archive.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), content)
        links = [
            f'<a href="{path.name}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}">{path.name}</a>'
            for path in sorted(page.glob("*.whl"))
        ]
        (page / "index.html").write_text("<!DOCTYPE html><html><body>" + "\n".join(links) + "</body></html>")
