"""Run each command in the documentation unless its comment states why it cannot run."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.engines.checkpoint import quickstart
from service.episode.runner import EpisodeRunner
from tests.docs.blocks import REPO, Block, all_blocks
from tests.docs.shell_commands import unknown_names
from tests.e2e.server import ServerProcess, start
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from trainer.data.problems import Problem
from trainer.training.episodes import sample_episode
from trainer.training.run_files import ScoredSample, write_rollout

BLOCKS = all_blocks()
# Top-level await, as in a notebook.
RUN_PYTHON = (
    "import ast, asyncio, inspect, sys; code = compile(sys.stdin.read(), 'block', 'exec', "
    "ast.PyCF_ALLOW_TOP_LEVEL_AWAIT); result = eval(code, {'__name__': '__main__'}); "
    "inspect.iscoroutine(result) and asyncio.run(result)"
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """Server for all blocks that send requests."""
    running = start(quickstart(), "--warm-containers", "1", "--max-slots", "4")
    yield running
    running.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writable copy of the checkout, so that blocks do not write into the real one."""
    for entry in REPO.iterdir():
        if entry.name not in ("runs", "build", ".git"):
            (tmp_path / entry.name).symlink_to(entry)
    if not (REPO / ".venv").exists():  # the environment is in another folder
        (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def make_rollout(folder: Path) -> None:
    """Save a rollout of one episode at the path of the first rollout of recipes/quickstart.toml."""
    ask = "Let\n```python\nx = 6 * 7\n```\nand\n```python\nprint(x)\n```<tool_call>"
    engine = ScriptedEngine(ask, f"It is \\boxed{{42}}.{EOS}")
    sandbox = ScriptedSandbox(lambda blocks: printed("42"))
    runner = EpisodeRunner(engine, sandbox, DeferralPolicy(), Sampling())
    prompt = engine.tokenizer.encode("6 * 7?", allow_special=True)
    sample = asyncio.run(sample_episode(runner, prompt, seed=0, episode_id="s0"))
    problem = Problem(id="p", question="6 * 7?", answer="42")
    path = folder / "runs/quickstart/rollouts/rollout-000000.parquet"
    path.parent.mkdir(parents=True)
    write_rollout(path, 0, [ScoredSample(problem, sample, 1.0, "correct", 0.5)])


def run(block: Block, folder: Path, url: str | None) -> None:
    code = block.code
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": str(REPO)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    if url is not None:
        code = code.replace("http://127.0.0.1:8000", url).replace("http://localhost:8000", url)
        environment["IHGRPO_URL"] = url
    shell = ["bash", "-euo", "pipefail", "-c", code]
    command = shell if block.language == "sh" else [sys.executable, "-c", RUN_PYTHON]
    ended = subprocess.run(
        command, input=code, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert '"error"' not in ended.stdout[:200], ended.stdout[:500]


def blocks_to_run(*, docker: bool) -> list[object]:
    return [
        pytest.param(block, id=block.place)
        for block in BLOCKS
        if block.runs and ("server" in block.needs) is docker
    ]


@pytest.mark.docker
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", blocks_to_run(docker=True))
def test_block_with_server_runs(block: Block, folder: Path, server: ServerProcess) -> None:
    run(block, folder, server.url)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", blocks_to_run(docker=False))
def test_block_runs(block: Block, folder: Path) -> None:
    if "rollout" in block.needs:
        make_rollout(folder)
    run(block, folder, None)


@pytest.mark.parametrize("block", [pytest.param(block, id=block.place) for block in BLOCKS])
def test_block_has_comment_and_existing_names(block: Block) -> None:
    assert block.runs or block.by or block.reason, f"{block.place} needs a comment, see tests/docs/blocks.py"
    if block.by:
        file, name = block.by.split(" as ")
        assert f'"{name}"' in (REPO / file).read_text(encoding="utf-8"), f"{file} does not run {block.place}"
    if block.language == "sh":
        assert list(unknown_names(block.code)) == []
    else:
        compile(block.code, block.place, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert not re.search(r"\b(TODO|FIXME)\b", block.code)


def test_some_blocks_run() -> None:
    assert sum(block.runs for block in BLOCKS) >= 8
