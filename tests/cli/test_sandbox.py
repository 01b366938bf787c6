"""`ih-grpo sandbox`: images with more packages, from the resolution to a checked image, and their lists."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker
import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.sandbox.docker import image as sandbox_image
from service.sandbox.docker import packages
from service.sandbox.docker.settings import DEFAULT_IMAGE, default_docker_host
from tests.support.package_index import PackageIndex

DEFAULT = os.environ.get("IHGRPO_SANDBOX_IMAGE", DEFAULT_IMAGE)
# As in sandbox_image/Dockerfile, on top of the default image, whose packages need no second installation.
DOCKERFILE = """
ARG BASE_IMAGE=none
FROM ${BASE_IMAGE}
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
COPY requirements.txt /opt/sandbox/
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir -r /opt/sandbox/requirements.txt \
    && python3 -m pip list --format=json >/opt/sandbox/packages.json
"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """An index behind an HTTP server, and an image folder that adds its packages to the default image."""
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "requirements.txt").write_text("tiny-base==1.0\n")
    for module in (sandbox_image, packages):
        monkeypatch.setattr(module, "image_folder", lambda: folder)
    index = PackageIndex(tmp_path / "index")
    index.add("tiny-base", "1.0")
    index.add("tiny-extra", "1.2", needs="tiny-base", code="import numpy\nANSWER = 42\n")
    index.add("tiny-broken", "0.1", code="import socket\nsocket.socket()\n")
    handler = functools.partial(_Quiet, directory=str(index.folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")
    monkeypatch.delenv("IHGRPO_SANDBOX_IMAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def removed_afterwards(lock: Path) -> Iterator[None]:
    try:
        yield
    finally:
        if lock.exists():
            client = docker.DockerClient(base_url=default_docker_host(), version="auto")
            with contextlib.closing(client), contextlib.suppress(docker.errors.ImageNotFound):
                client.images.remove(packages.Lock.read(lock).image, force=True)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["sandbox", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_unknown_package_is_an_error_without_a_traceback(index: PackageIndex) -> None:
    result = CliRunner().invoke(app, ["sandbox", "build", "--with", "tiny-extar"])
    assert result.exit_code == 2
    assert "error the packages can't be resolved" in result.output
    assert "tiny-extar was not found" in result.output.replace("\n", " ")


def test_locked_needs_a_lock_file(index: PackageIndex) -> None:
    result = CliRunner().invoke(app, ["sandbox", "build", "--locked"])
    assert result.exit_code == 2
    assert "the lock file sandbox-packages.lock can't be read" in result.output


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_builds_checks_lists_and_reuses_an_image_with_more_packages(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "sandbox-packages.lock"
    with removed_afterwards(lock):
        output = run("build", "--with", "tiny-extra", "--base-image", DEFAULT)
        image = packages.Lock.read(lock).image
        assert f"{image} is built" in output
        assert "all isolation checks passed" in output
        assert "import tiny_extra took" in output
        assert f"--sandbox-image {image}" in output

        index.add("tiny-extra", "1.3")
        monkeypatch.setattr(packages, "_uv", lambda: pytest.fail("--locked does not resolve"))
        assert f"{image} is up to date" in run("build", "--locked", "--base-image", DEFAULT)

        listed = {entry["image"]: entry for entry in json.loads(run("list", "--json"))}
        assert listed[image]["with"] == ["tiny-extra"]
        assert listed[DEFAULT]["with"] == []
        assert listed[image]["size"] >= listed[DEFAULT]["size"] > 100e6
        assert "tiny-extra" in run("list")

        about = json.loads(run("show", image, "--json"))
        assert about["packages"]["tiny-extra"] == "1.2"
        assert {"tiny-base", "tiny-extra"} <= set(about["direct"])
        assert "numpy" in run("show", image)


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_reports_a_package_that_the_sandbox_does_not_allow(index: PackageIndex, tmp_path: Path) -> None:
    lock = tmp_path / "sandbox-packages.lock"
    with removed_afterwards(lock):
        result = CliRunner().invoke(
            app, ["sandbox", "build", "--with", "tiny-broken", "--base-image", DEFAULT, "--lock", str(lock)]
        )
    assert result.exit_code == 2
    assert "can't be imported in the sandbox: PermissionError" in result.output.replace("\n", " ")
    assert "did not pass its checks" in result.output


@pytest.mark.docker
def test_shows_the_packages_of_the_default_image() -> None:
    about = json.loads(run("show", DEFAULT, "--json"))
    expected = {"numpy", "sympy", "scipy", "pandas", "openpyxl", "pyarrow", "scikit-learn", "matplotlib"}
    assert expected <= set(about["direct"])
    assert about["packages"].keys() > set(about["direct"])
    assert about["size"] < 1e9, "the default image has a limit of 1 GB"


@pytest.mark.docker
def test_show_reports_a_missing_image() -> None:
    result = CliRunner().invoke(app, ["sandbox", "show", "ih-grpo-no-such:none"])
    assert result.exit_code == 2
    assert "Docker has no image ih-grpo-no-such:none: ih-grpo sandbox build" in result.output
