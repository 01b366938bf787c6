"""OpenAI's Codex CLI, without its own sandbox: a command that the model runs, then a second turn."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from harness import BASE_URL, HELLO, KEY, MODEL, feature, run

folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
home = folder / "codex"
home.mkdir()
(home / "config.toml").write_text(
    f'model = "{MODEL}"\nmodel_provider = "ours"\n'
    'approval_policy = "never"\nsandbox_mode = "danger-full-access"\n'
    f'[model_providers.ours]\nname = "ours"\nbase_url = "{BASE_URL}"\nenv_key = "CODEX_KEY"\n'
    'wire_api = "responses"\nrequest_max_retries = 0\nstream_max_retries = 0\n'
)


def codex(*arguments: str) -> str:
    """Run ``codex exec`` and return the last message."""
    environment = {**os.environ, "CODEX_HOME": str(home), "CODEX_KEY": KEY}
    program = Path.cwd() / "node_modules/.bin/codex"
    done = subprocess.run(
        [str(program), "exec", *arguments, "--skip-git-repo-check", "-o", str(folder / "last.txt")],
        capture_output=True, text=True, env=environment, cwd=folder, timeout=120, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(done.stdout + done.stderr)
    return (folder / "last.txt").read_text().strip()


@feature("chat")
def chat() -> None:
    assert codex("Hi") == HELLO


@feature("own functions")
@feature("Responses API")  # the only API that it uses
def functions() -> None:
    assert "sunny" in codex("Please use the shell")
    assert codex("resume", "--last", "Hello") == HELLO


run()
