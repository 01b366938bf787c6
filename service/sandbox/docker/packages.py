"""Packages of a sandbox image: resolution into a lock file, and the list of packages inside an image.

A lock file pins the packages of the default image and the requested ones, with all of their dependencies and
their hashes. It is a requirements file of pip for all processors, with two lines of comments at its start.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import docker
from docker.errors import NotFound
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from service.sandbox.base import SandboxError
from service.sandbox.worker_program import image_folder

LOCK_FILE: Final = Path("sandbox-packages.lock")
"""Default name of the lock file."""
PACKAGES_FILE: Final = "/opt/sandbox/packages.json"
"""List of the installed packages inside an image, written by its build."""
_TITLE: Final = "# Packages of a sandbox image, written by `ih-grpo sandbox build --with`."
_REQUESTED: Final = "# with: "
_OLDEST_PYTHON: Final = "3.11"
_PIN: Final = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)
_SEPARATOR: Final = re.compile(r",(?![^\[]*\])\s*(?=[A-Za-z0-9])")
"""A comma between two requirements, but not one between extras or between versions."""
_PYTHON_HINT: Final = re.compile(r"hint: While the active Python version .*`requires-python`\.")
"""A hint of uv that only applies to projects."""
_UNSUPPORTED: Final = {
    "polars": "its threads do not survive the checkpoint between two runs, and every later run hangs; "
    "use pandas or pyarrow"
}
"""Packages that can be imported but not used, and the reason."""


@dataclass(frozen=True, slots=True)
class Lock:
    """The content of a lock file."""

    requested: tuple[str, ...]
    """Requirements that were added to those of the default image, sorted."""
    text: str

    @property
    def lines(self) -> list[str]:
        """The lines without comments: a requirements file, the same for the same pins."""
        return [line.strip() for line in self.text.splitlines() if line.strip() and line[0] != "#"]

    @property
    def digest(self) -> str:
        """SHA-256 of the pinned packages."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    @property
    def image(self) -> str:
        """Tag of the image with these packages, the same for the same pins."""
        return f"ih-grpo-sandbox:with-{self.digest[:12]}"

    @property
    def pins(self) -> dict[str, str]:
        """Version by normalized name. A package with several versions has the first one."""
        found: dict[str, str] = {}
        for name, version in _PIN.findall(self.text):
            found.setdefault(canonicalize_name(name), version)
        return found

    @classmethod
    def read(cls, path: Path) -> Lock:
        """Read a lock file.

        Raises:
            SandboxError: it can't be read, or is not a lock file of this version's default packages.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SandboxError(f"the lock file {path} can't be read: {error}") from None
        lines = text.splitlines()
        if len(lines) < 2 or lines[0] != _TITLE or not lines[1].startswith(_REQUESTED):
            raise SandboxError(f"{path} is not a lock file of `ih-grpo sandbox build --with`")
        return cls(parse_requirements([lines[1].removeprefix(_REQUESTED)]), text)

    def check(self, requested: tuple[str, ...]) -> None:
        """Check that the lock can be used as it is.

        Args:
            requested: requirements that it must be made of; empty to accept any.

        Raises:
            SandboxError: it was made of other requirements, or of other default packages.
        """
        if requested and requested != self.requested:
            raise SandboxError(
                f"the lock file is for {', '.join(self.requested)}, not for {', '.join(requested)}: "
                "run the build without --locked to update it"
            )
        pins = self.pins
        for name, version in _PIN.findall(_default_requirements()):
            if pins.get(canonicalize_name(name)) != version:
                raise SandboxError(
                    f"the lock file does not have {name} {version} of the default image: "
                    "run the build without --locked to update it"
                )


def parse_requirements(values: Iterable[str]) -> tuple[str, ...]:
    """Return the requirements in comma-separated ``values``, such as ``umap-learn,xarray>=1``, sorted.

    Raises:
        SandboxError: one of them is not a name with an optional version.
    """
    found = set()
    for text in (part.strip() for value in values for part in _SEPARATOR.split(value)):
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).splitlines()[0]
            raise SandboxError(
                f"{text!r} is not the name of a package, with or without a version: {reason}"
            ) from None
        if requirement.url is not None:
            raise SandboxError(f"{text!r}: only packages of a package index are possible, not URLs")
        requirement.name = canonicalize_name(requirement.name)
        found.add(str(requirement))
    return tuple(sorted(found))


def resolve(
    requested: tuple[str, ...], path: Path, index: Mapping[str, str], certificate: Path | None
) -> Lock:
    """Resolve ``requested`` together with the packages of the default image, and write the lock file.

    Versions of an existing lock file are kept if they still fit.

    Args:
        requested: the result of ``parse_requirements``.
        path: the lock file.
        index: pip's settings of the package index, by the names of environment variables.
        certificate: certificates of the package index; None for those of the system.

    Raises:
        SandboxError: uv is not installed, the package does not exist, it can't be used in the sandbox, the
            versions conflict, or the lock file can't be written.
    """
    for name in _names(requested) & _UNSUPPORTED.keys():
        raise SandboxError(f"{name} does not work in the sandbox: {_UNSUPPORTED[name]}")
    earlier = Lock.read(path).text if path.exists() else ""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "lock.txt")
        output.write_text(earlier, encoding="utf-8")
        command = [
            *(_uv(), "pip", "compile", "-", "--output-file", str(output), "--universal", "--no-config"),
            *("--python-version", _OLDEST_PYTHON, "--generate-hashes", "--only-binary", ":all:"),
            *("--no-header", "--no-annotate", "--quiet", *_index_options(index)),
        ]
        env = dict(os.environ)
        if certificate is not None:
            env["SSL_CERT_FILE"] = str(certificate)
        done = subprocess.run(  # noqa: S603
            command,
            input=f"{_default_requirements()}\n" + "\n".join(requested),
            env=env,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SandboxError(f"the packages can't be resolved: {_reason(done.stderr)}")
        body = output.read_text(encoding="utf-8")
    lock = Lock(requested, f"{_TITLE}\n{_REQUESTED}{','.join(requested)}\n{body}")
    try:
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        partial.write_text(lock.text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise SandboxError(f"the lock file {path} can't be written: {error.strerror}") from None
    return lock


def _default_requirements() -> str:
    return (image_folder() / "requirements.txt").read_text(encoding="utf-8")


def default_packages() -> tuple[str, ...]:
    """Return the normalized names of the packages that the default image is made of, without dependencies."""
    return tuple(canonicalize_name(name) for name, _ in _PIN.findall(_default_requirements()))


def _uv() -> str:
    """Return the path of uv.

    Raises:
        SandboxError: it is not installed.
    """
    with contextlib.suppress(ModuleNotFoundError, FileNotFoundError):
        return str(import_module("uv").find_uv_bin())
    if (path := shutil.which("uv")) is None:
        raise SandboxError(
            f"--with needs uv to resolve packages: {Path(sys.executable).name} -m pip install uv"
        )
    return path


def _index_options(index: Mapping[str, str]) -> list[str]:
    """Return uv's options for pip's settings."""
    options = []
    for variable, option in (
        ("PIP_INDEX_URL", "--default-index"),
        ("PIP_EXTRA_INDEX_URL", "--index"),
        ("PIP_TRUSTED_HOST", "--allow-insecure-host"),
    ):
        for value in index.get(variable, "").split():
            options += [option, value]
    return options


def _reason(stderr: str) -> str:
    """Return the cause in uv's error message on one line, with its hints."""
    lines = [line.strip(" ×╰─▶→\t") for line in stderr.strip().splitlines()]
    causes = [
        line for line in lines if line and not line.startswith(("warning:", "error: No solution found"))
    ]
    text = " ".join(causes) or stderr.strip()
    text = _PYTHON_HINT.sub("", re.sub(r"\s+", " ", text)).strip()
    return text.removeprefix("cause: ").removeprefix("error: ")


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """A sandbox image on the daemon."""

    name: str
    size: int
    """Size in bytes, with the layers that it shares with other images."""
    requested: tuple[str, ...]
    """Requirements that were added to those of the default image."""
    packages: dict[str, str] | None = None
    """Version by name, of all packages; None if not read or not recorded in the image."""

    @property
    def direct(self) -> dict[str, str]:
        """The packages of the default image and the requested ones, without dependencies."""
        return self._named({*default_packages(), *_names(self.requested)})

    @property
    def added(self) -> dict[str, str]:
        """The requested packages."""
        return self._named(_names(self.requested))

    def _named(self, wanted: set[str]) -> dict[str, str]:
        return {name: at for name, at in (self.packages or {}).items() if canonicalize_name(name) in wanted}


def _names(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def read_packages(client: docker.APIClient, image: str) -> dict[str, str] | None:
    """Return the version of each package inside ``image``; None if it holds no list of them.

    The list is read from the image's files. No code of the image runs.

    Raises:
        docker.errors.DockerException: the daemon failed or does not have the image.
    """
    container = client.create_container(image, command=["none"], network_disabled=True)["Id"]
    try:
        chunks, _ = client.get_archive(container, PACKAGES_FILE)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            member = archive.extractfile(archive.getmembers()[0])
            entries: list[dict[str, Any]] = json.load(member) if member is not None else []
    except NotFound:
        return None
    finally:
        client.remove_container(container, force=True)
    return {str(entry["name"]): str(entry["version"]) for entry in entries}
