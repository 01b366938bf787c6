"""The wheel without a checkout: built from the sdist, installed, and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import start

REPO = Path(__file__).parents[1]
PARTS = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "THIRD_PARTY_NOTICES",
    "service",
    "trainer",
    "sandbox_image",
    "checkpoints",
    "recipes",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist of a tree that contains a local certificate and caches."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for part in PARTS:
        if (REPO / part).is_dir():  # without the caches, which other tests may be writing
            shutil.copytree(REPO / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / part, source)
    cache = source / "service/__pycache__"
    cache.mkdir()
    (cache / "main.cpython-311.pyc").write_text("a cache")
    (source / "sandbox_image/certs/machine.crt").write_text("of this machine")
    (source / ".gitignore").write_text((REPO / ".gitignore").read_text())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment with the wheel; dependencies come from the test environment."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=False)
    python = home / "bin/python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, wheel], check=True)
    ours = next(home.glob("lib/python*/site-packages"))
    theirs = next(path for path in sys.path if path.endswith("site-packages"))
    (ours / "dependencies.pth").write_text(theirs + "\n")
    return home / "bin"


def run(program: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [program, *arguments], cwd="/", env=environment, capture_output=True, text=True, check=check
    )


def test_wheel_has_its_data_and_no_local_files(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "service/checkpoints/quickstart/model.safetensors",
        "service/sandbox/image/Dockerfile",
        "service/sandbox/image/certs/README.md",
        "service/sandbox/image/seccomp.json",
        "service/sandbox/image/worker/supervisor.py",
        "service/store/migrations/versions/r0001_baseline.py",
        "service/api/swagger_ui/swagger-ui-bundle.js",
        "service/playground/static/main.js",
        "service/playground/static/vendor/katex.min.js",
        "service/playground/static/vendor/fonts/KaTeX_Main-Regular.woff2",
        "service/playground/static/vendor/licenses/katex.txt",
        "trainer/evaluation/templates/report.html.jinja",
        "trainer/runs/templates/comparison.html.jinja",
        "trainer/training/templates/model_card.md.jinja",
        "trainer/recipes/quickstart-warm-start.toml",
        "trainer/recipes/accelerate/ddp.yaml",
    ):
        assert name in names
    assert [name for name in names if name.endswith((".crt", ".pyc"))] == []
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as sdist:
        assert [name for name in sdist.getnames() if name.endswith((".crt", ".pyc"))] == []


def test_wheel_has_the_notices_and_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [path] = [name for name in archive.namelist() if name.endswith("/licenses/THIRD_PARTY_NOTICES")]
        assert archive.read(path) == (REPO / "THIRD_PARTY_NOTICES").read_bytes()
        assert path.replace("THIRD_PARTY_NOTICES", "LICENSE") in archive.namelist()


def test_wheel_has_every_sandbox_image_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(
        ["git", "ls-files", "sandbox_image"], cwd=REPO, capture_output=True, text=True, check=True
    )
    for path in listed.stdout.splitlines():
        assert path.replace("sandbox_image", "service/sandbox/image", 1) in names


def test_installed_commands_run(installed: Path) -> None:
    assert "serve" in run(installed / "ih-grpo", "--help").stdout
    assert run(installed / "ih-grpo", "--version").stdout.startswith("ih-grpo ")
    assert "--recipe" in run(installed / "ih-grpo", "train", "--help").stdout


@pytest.mark.docker
def test_commands_in_messages_work_without_a_checkout(installed: Path) -> None:
    assert "steps" in run(installed / "ih-grpo", "train", "warm-start", "--dry-run").stderr
    plan = run(installed / "ih-grpo", "train", "--recipe", "recipes/quickstart.toml", "--dry-run")
    assert "quickstart" in plan.stdout + plan.stderr
    assert "is up to date" in run(installed / "ih-grpo", "sandbox", "build").stderr


def test_installed_package_finds_its_data(installed: Path) -> None:
    code = (
        "import service; from service.engines.checkpoint import quickstart; "
        "from service.sandbox.worker_program import image_folder; "
        "print(service.__file__, quickstart(), image_folder())"
    )
    for path in run(installed / "python", "-c", code).stdout.split():
        assert Path(path).is_relative_to(installed.parent)
        assert Path(path).exists()
    report = json.loads(run(installed / "ih-grpo", "doctor", "--quick", "--json", check=False).stdout)
    (model,) = [check for check in report["checks"] if check["check"] == "model"]
    assert model["verdict"] == "ok"


@pytest.fixture
def served(installed: Path) -> Iterator[str]:
    """Address of a server that runs from the wheel with its own checkpoint."""
    checkpoint = next(installed.parent.glob("lib/python*/site-packages/service/checkpoints/quickstart"))
    running = start(checkpoint, "--warm-containers", "1", program=[installed / "ih-grpo"])
    yield running.url
    running.stop()


@pytest.mark.docker
def test_installed_package_serves_the_quickstart_checkpoint(served: str) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is 739184 times 52967 plus 90412 times 33771?"}],
        "model": "quickstart",
        "temperature": 0,
    }
    reply = httpx.post(f"{served}/v1/chat/completions", json=body, timeout=300).json()
    assert f"{739184 * 52967 + 90412 * 33771}" in reply["choices"][0]["message"]["content"]
