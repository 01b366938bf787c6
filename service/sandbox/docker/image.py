"""Build the sandbox image from the files that come with the package, and list the images that were built.

The files are the same in a checkout (``sandbox_image/``) and in the wheel. A lock file (``packages.Lock``)
replaces their ``requirements.txt``. The build also uses the machine's
access to its package index: pip's index settings, and the certificates that PIP_CERT, REQUESTS_CA_BUNDLE or
SSL_CERT_FILE names.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import docker
from docker.errors import DockerException, ImageNotFound
from requests.exceptions import RequestException

from service.sandbox.base import SandboxError
from service.sandbox.docker.packages import ImageInfo, Lock, parse_requirements, read_packages
from service.sandbox.docker.settings import DEFAULT_IMAGE, build_command, default_docker_host
from service.sandbox.worker_program import image_folder

LABEL: Final = "ih-grpo.content"
"""Label that holds the ``content_hash`` of the files that an image was built from."""
_WITH: Final = "ih-grpo.with"
"""Label that holds the requirements that were added to those of the default image."""
_CERTIFICATES: Final = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
_TAIL: Final = 30


def build_image(
    image: str = DEFAULT_IMAGE,
    *,
    base_image: str | None = None,
    lock: Lock | None = None,
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,  # noqa: ARG005
) -> bool:
    """Build ``image`` on the Docker daemon, unless an image built from the same files exists.

    Args:
        image: tag of the image.
        base_image: replaces the Dockerfile's base image. It must be a Debian with Python 3.11 or later.
        lock: the packages of the image; None for those of the default image.
        force: build even if the image is up to date.
        report: called with each step of the build.

    Returns:
        Whether the image was built.

    Raises:
        SandboxError: Docker does not answer, or the build failed; with the last lines of its output.
    """
    with _daemon() as client:
        folder = image_folder()
        content = content_hash(folder, lock)
        if not force and _label(client, image) == content:
            return False
        arguments = build_arguments(os.environ)
        if base_image is not None:
            arguments["BASE_IMAGE"] = base_image
        labels = {LABEL: content}
        if lock is not None:
            labels[_WITH] = ",".join(lock.requested)
        output = client.build(
            fileobj=_context(folder, index_certificate(os.environ), lock),
            custom_context=True,
            tag=image,
            buildargs=arguments,
            labels=labels,
            network_mode=_build_network(client),
            rm=True,
            decode=True,
        )
        _follow(output, report)
    return True


def _build_network(client: docker.APIClient) -> str | None:
    """Return the network of the steps of a build: the host's, whose addresses and proxies work there too.

    A daemon with ``userns-remap`` can't share it; None is the daemon's default network.
    """
    options = client.info().get("SecurityOptions") or ()
    return None if any(option.startswith("name=userns") for option in options) else "host"


def list_images() -> list[ImageInfo]:
    """Return the sandbox images of the Docker daemon, by name, without their packages.

    Raises:
        SandboxError: Docker does not answer.
    """
    with _daemon() as client:
        return sorted(
            (
                ImageInfo(tag, int(entry["Size"]), _requested(entry.get("Labels")))
                for entry in client.images(filters={"label": LABEL})
                for tag in entry.get("RepoTags") or ()
                if tag != "<none>:<none>"
            ),
            key=lambda image: image.name,
        )


def inspect_image(image: str) -> ImageInfo:
    """Return ``image`` with its packages.

    Raises:
        SandboxError: Docker does not answer, or does not have the image.
    """
    with _daemon() as client:
        try:
            about = client.inspect_image(image)
        except ImageNotFound:
            raise SandboxError(f"Docker has no image {image}: {build_command(image)}") from None
        labels = about["Config"].get("Labels")
        return ImageInfo(image, int(about["Size"]), _requested(labels), read_packages(client, image))


def _requested(labels: Mapping[str, str] | None) -> tuple[str, ...]:
    return parse_requirements([value]) if (value := (labels or {}).get(_WITH)) else ()


@contextlib.contextmanager
def _daemon() -> Iterator[docker.APIClient]:
    """Connect to the Docker daemon.

    Raises:
        SandboxError: it does not answer, or a request inside the context fails.
    """
    host = default_docker_host()
    if host.startswith("unix://") and not Path(host.removeprefix("unix://")).is_socket():
        raise SandboxError(f"no Docker daemon answers at {host}: start it, or set DOCKER_HOST")
    try:
        with contextlib.closing(docker.APIClient(base_url=host, version="auto", timeout=600)) as client:
            yield client
    except (DockerException, RequestException) as error:
        raise SandboxError(f"Docker at {host}: {error}") from None


def content_hash(folder: Path, lock: Lock | None = None) -> str:
    """Return the SHA-256 of the names, modes and contents of the files in ``folder``, and of ``lock``.

    Excludes certificates and Python's caches, which do not affect the image.
    """
    lines = []
    for path in sorted(_files(folder), key=lambda path: f"./{path.relative_to(folder)}".encode()):
        relative = path.relative_to(folder)
        if relative.parts[0] == "certs":
            continue
        mode = "x" if os.access(path, os.X_OK) else "-"
        lines.append(f"{mode} {hashlib.sha256(path.read_bytes()).hexdigest()} ./{relative}\n")
    if lock is not None:
        lines.append(f"{lock.digest}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def build_arguments(env: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of pip that are usable inside a container: URLs, not local folders."""
    found = {}
    for name in ("index-url", "extra-index-url", "trusted-host"):
        variable = f"PIP_{name.replace('-', '_').upper()}"
        value = env.get(variable) or _pip_setting(name)
        words = value.split() if name == "trusted-host" else re.findall(r"https?://\S+", value)
        if words:
            found[variable] = " ".join(words)
    return found


def _pip_setting(name: str) -> str:
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


def index_certificate(env: Mapping[str, str]) -> Path | None:
    """Return the file of certificates that the environment names, or None.

    Raises:
        SandboxError: the file can't be read.
    """
    for variable in _CERTIFICATES:
        if value := env.get(variable):
            if not os.access(value, os.R_OK):
                raise SandboxError(f"the certificate file {value}, which {variable} names, can't be read")
            return Path(value)
    return None


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    ]


def _context(folder: Path, certificate: Path | None, lock: Lock | None = None) -> io.BytesIO:
    """Return the build context as a tar file in memory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in _files(folder):
            name = str(path.relative_to(folder))
            if lock is None or name != "requirements.txt":
                archive.add(path, name)
        if lock is not None:
            requirements = tarfile.TarInfo("requirements.txt")
            content = "\n".join(lock.lines).encode()
            requirements.size = len(content)
            archive.addfile(requirements, io.BytesIO(content))
        if certificate is not None:
            archive.add(certificate.resolve(), "certs/machine.crt")
    buffer.seek(0)
    return buffer


def _label(client: docker.APIClient, image: str) -> str | None:
    try:
        labels = client.inspect_image(image)["Config"].get("Labels") or {}
    except ImageNotFound:
        return None
    value = labels.get(LABEL)
    return None if value is None else str(value)


def _follow(output: object, report: Callable[[str], None]) -> None:
    """Report the steps of the build.

    Raises:
        SandboxError: the build failed.
    """
    tail: deque[str] = deque(maxlen=_TAIL)
    for event in output:  # type: ignore[attr-defined]
        for line in str(event.get("stream", "")).splitlines():
            tail.append(line)
            if line.upper().startswith("STEP "):  # Podman writes it in capitals
                report(line)
        if "error" in event:
            raise SandboxError(
                "\n".join(tail)
                + f"\nthe build of the sandbox image failed: {event['error'].strip()}. Check the "
                "network. Behind a proxy that intercepts TLS, set SSL_CERT_FILE to its certificate file. If "
                "the base image can't be pulled, choose another one with --base-image"
            )
