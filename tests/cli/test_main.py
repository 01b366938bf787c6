from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.api.auth import digest_of, parse_key
from service.cli.main import app

runner = CliRunner()


def test_version_and_help() -> None:
    assert runner.invoke(app, ["--version"]).stdout.startswith("ih-grpo 0.")
    output = runner.invoke(app, ["--help"]).stdout
    assert all(command in output for command in ("serve", "chat", "runner", "train"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serve", "--sandbox", "in-process", "--host", "0.0.0.0"], "Docker socket"),
        (
            ["serve", "--sandbox", "docker"],
            "sandbox: Input should be 'auto', 'runner', 'in-process' or 'process'",
        ),
        (["serve", "--sandbox", "process"], "use sandbox 'runner', or set accept_weaker_isolation"),
        (
            ["serve", "--sandbox", "process", "--accept-weaker-isolation", "--port", "0", "--model", "/no"],
            "'/no' is not a checkpoint",
        ),
        (
            ["serve", "--sandbox", "in-process", "--port", "0", "--model", "/no"],
            "'/no' is not a checkpoint",
        ),
        (["chat", "hello", "--url", "http://127.0.0.1:9"], "no server at http://127.0.0.1:9"),
        (
            ["serve", "--sandbox", "runner", "--port", "0"],
            "without a runner, use a loopback host and --sandbox in-process",
        ),
        (["runner"], "no usable token in IHGRPO_RUNNER_TOKEN"),
        (["runner", "--token-file", "TOKEN", "--tls-cert-file", "c.pem"], "both a certificate and its key"),
        (
            ["runner", "--token-file", "TOKEN", "--drain", "--bind", "unix:/none.sock"],
            "no runner answers at unix:/none.sock",
        ),
        (
            ["runner", "--token-file", "TOKEN", "--drain", "--resume", "--bind", "unix:/none.sock"],
            "--drain and --resume exclude each other",
        ),
    ],
)
def test_invalid_setting_is_one_line_and_exit_code_2(
    arguments: list[str], complaint: str, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 32)
    arguments = [str(token) if argument == "TOKEN" else argument for argument in arguments]
    result = runner.invoke(app, arguments, env={"IHGRPO_RUNNER_TOKEN": ""})
    assert result.exit_code == 2
    assert complaint in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


def test_reports_a_port_in_use() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = runner.invoke(app, ["serve", "--sandbox", "in-process", "--port", port])
    assert result.exit_code == 2
    assert f"can't listen on 127.0.0.1:{port}" in result.output


def test_help_imports_no_heavy_packages() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from service.cli.main import app;"
        "CliRunner().invoke(app, ['serve', '--help']);"
        "print([m for m in ('torch', 'transformers', 'trl', 'docker', 'fastapi') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_key_prints_the_secret_and_the_key_file_line() -> None:
    # The key file gets only the hash (stdout); the secret is printed on stderr.
    result = runner.invoke(app, ["keys", "create", "--name", "ci", "--rpm", "60"])
    made = parse_key(result.stdout.strip(), hashed=True)
    assert (made.name, made.requests_per_minute, made.concurrency) == ("ci", 60, None)
    [secret] = [line.strip() for line in result.stderr.splitlines() if line.startswith("  sk-")]
    assert made.digest == digest_of(secret)
    assert not made.is_admin
    assert parse_key(runner.invoke(app, ["keys", "create", "--admin"]).stdout.strip(), hashed=True).is_admin
    assert runner.invoke(app, ["key", "--name", "two words"]).exit_code == 2  # the name in version 0.1.0
    assert not re.search(r"^  key ", runner.invoke(app, ["--help"]).stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", ["train --recipe recipes/quickstart.toml --dry-run", "show rollout.parquet"]
)
def test_reports_missing_training_packages(arguments: str) -> None:
    code = f"import sys; sys.modules['pyarrow'] = None; sys.argv = 'ih-grpo {arguments}'.split(); "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}from service.cli.main import main; main()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error ih-grpo ")
    assert "(pyarrow.parquet): pip install 'ih-grpo[train]'" in done.stderr
