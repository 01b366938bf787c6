"""Build of the sandbox image: its context and arguments, and a real build of a small image."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.sandbox.base import SandboxError
from service.sandbox.docker import image as sandbox_image
from service.sandbox.docker.container import Daemon
from service.sandbox.docker.image import build_arguments, build_image, content_hash
from service.sandbox.docker.settings import DockerSandboxSettings, build_command
from service.sandbox.worker_program import image_folder

NAME = "ih-grpo-test-image:latest"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the image folder with a cached byte code file."""
    caches = shutil.ignore_patterns("__pycache__")  # other tests may be writing them
    folder = Path(shutil.copytree(image_folder(), tmp_path / "image", ignore=caches))
    (folder / "worker/__pycache__").mkdir()
    (folder / "worker/__pycache__/a.pyc").write_text("x")
    return folder


def test_caches_do_not_change_the_hash(folder: Path) -> None:
    before = content_hash(folder)
    assert before == content_hash(image_folder())
    (folder / "Dockerfile").write_text("FROM other\n")
    assert content_hash(folder) != before


def test_build_context_holds_the_files_and_the_certificate(folder: Path, tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.write_text("a certificate")
    with tarfile.open(fileobj=sandbox_image._context(folder, certificate)) as archive:
        names = set(archive.getnames())
        assert archive.extractfile("certs/machine.crt").read() == b"a certificate"  # type: ignore[union-attr]
    assert {"Dockerfile", "requirements.txt", "worker/supervisor.py", "certs/README.md"} <= names
    assert not [name for name in names if name.endswith(".pyc")]


def test_passes_only_urls_to_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_image, "_pip_setting", lambda name: "")
    given = {
        "PIP_EXTRA_INDEX_URL": "file:///opt/wheels https://pip.example/simple",
        "PIP_INDEX_URL": "/srv/wheels",
        "PIP_TRUSTED_HOST": "pip.example other.example",
    }
    assert build_arguments(given) == {
        "PIP_EXTRA_INDEX_URL": "https://pip.example/simple",
        "PIP_TRUSTED_HOST": "pip.example other.example",
    }


def test_an_unreadable_certificate_is_an_error() -> None:
    with pytest.raises(SandboxError, match=r"/no/such\.pem, which SSL_CERT_FILE names"):
        sandbox_image.index_certificate({"SSL_CERT_FILE": "/no/such.pem"})
    assert sandbox_image.index_certificate({}) is None


def test_a_missing_daemon_is_reported_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    result = CliRunner().invoke(app, ["sandbox", "build"])
    assert result.exit_code == 2
    assert f"no Docker daemon answers at unix://{tmp_path}/docker.sock" in result.output.replace("\n", "")


@pytest.mark.docker
async def test_reports_a_missing_image_with_the_build_command() -> None:
    daemon = Daemon(DockerSandboxSettings(image="ih-grpo-no-such:none"))
    try:
        with pytest.raises(SandboxError, match="ih-grpo sandbox build --image ih-grpo-no-such:none"):
            await daemon.call(lambda client: client.inspect_image("ih-grpo-no-such:none"))
    finally:
        daemon.close()
    assert build_command("ih-grpo-sandbox:latest") == "ih-grpo sandbox build"
    assert CliRunner().invoke(app, ["sandbox", "build", "--help"]).exit_code == 0


@pytest.mark.parametrize(
    ("options", "network"),
    [
        (["name=seccomp,profile=default"], "host"),
        (["name=userns"], None),
        (["name=rootless"], "host"),
        (None, "host"),
    ],
)
def test_steps_of_a_build_use_the_network_of_the_host(options: list[str] | None, network: str | None) -> None:
    client = Mock(**{"info.return_value": {"SecurityOptions": options}})
    assert sandbox_image._build_network(client) == network


@pytest.mark.docker
@pytest.mark.timeout(600)
def test_builds_an_image_once_and_again_when_its_files_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "Dockerfile").write_text("ARG BASE_IMAGE=none\nFROM ${BASE_IMAGE}\nLABEL of=a-test\n")
    monkeypatch.setattr(sandbox_image, "image_folder", lambda: folder)
    steps: list[str] = []
    try:
        assert build_image(NAME, base_image="ih-grpo-sandbox:latest", report=steps.append)
        assert any("FROM" in step for step in steps)
        assert not build_image(NAME)
        (folder / "Dockerfile").write_text("ARG BASE_IMAGE=none\nFROM ${BASE_IMAGE}\nRUN exit 7\n")
        with pytest.raises(SandboxError, match="build of the sandbox image failed"):
            build_image(NAME, base_image="ih-grpo-sandbox:latest")
    finally:
        import docker

        client = docker.from_env()
        client.images.remove(NAME, force=True)
        client.close()
