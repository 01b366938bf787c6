from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.deferral.policy import DeferralPolicy
from tests.support.tiny_qwen3 import make_checkpoint

RUN = CliRunner()


@pytest.fixture
def recipe(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'model = "{tiny_checkpoint}"\ndata = ["quickstart:5"]\nrun_dir = "{tmp_path / "run"}"\n'
        'policy = { prompt = "brief-v1" }\n'
    )
    return path


def test_dry_run_prints_summary(recipe: Path, tmp_path: Path) -> None:
    result = RUN.invoke(app, ["train", "--recipe", str(recipe), "--set", "method=grpo-delayed", "--dry-run"])
    assert result.exit_code == 0
    assert "grpo-delayed, hierarchy weight 0.0" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_is_taught_from_the_command_line(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", max_position_embeddings=2048)
    out = tmp_path / "out"
    command = ["train", "warm-start", "--model", str(base), "--out", str(out), "--steps", "1",
               "--threads", "1", "--set", "chat_share=0", "--set", "dtype=float32", "--set", "lora.rank=2",
               "--set", "held_out_texts=2", "--set", "max_tokens=1500"]  # fmt: skip
    plan = RUN.invoke(app, [*command, "--dry-run"])
    assert plan.exit_code == 0, plan.stderr
    assert "1 steps of 6 texts" in plan.stderr
    assert "You are a helpful assistant" in plan.stderr
    assert not out.exists()
    result = RUN.invoke(app, command)
    assert result.exit_code == 0, result.stderr
    checkpoint = out / "checkpoints" / "checkpoint-1"
    assert f"done: ih-grpo serve --model {checkpoint} --base {base}" in result.stderr
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert DeferralPolicy.load(checkpoint).mode == "deferred"


def test_overrides_need_a_checkpoint_to_teach() -> None:
    result = RUN.invoke(app, ["train", "warm-start", "--set", "steps=1"])
    assert result.exit_code == 2
    assert "--set needs --model" in result.stderr


@pytest.mark.parametrize(("args", "message"), [
    (["train", "warm-start", "--model", "nowhere"], "'nowhere' is not a checkpoint"),
    (["train", "warm-start", "--model", "m", "--set", "weights=half"], "weights: "),
    (["train", "--dry-run"], "--recipe is missing"),
    (["train", "--recipe", "RECIPE", "--shards", "8"], "--shards needs --dry-run"),
    (["train", "--recipe", "nowhere.toml"], "cannot read recipe nowhere.toml"),
    (["train", "--recipe", "RECIPE", "--set", "steps=0"], "steps: Input should be greater"),
    (["train", "--recipe", "RECIPE", "--set", "model=nowhere"], "'nowhere' is not a checkpoint"),
    (["train", "--recipe", "RECIPE", "--set", 'data=["gone.jsonl"]'], "gone.jsonl"),
    (["train", "--recipe", "RECIPE", "--set", "policy.marker=<run>"], "no token '<run>'"),
    (["eval", "gone.jsonl", "--model", "m", "--out", "OUT"], "gone.jsonl"),
    (["eval", "quickstart:1", "--model", "nowhere", "--out", "OUT"], "'nowhere' is not a checkpoint"),
    (["eval", "quickstart:1", "--model", "m", "--out", "OUT", "--top-p", "2"], "top_p: "),
    (["eval", "quickstart:1", "--model", "m", "--out", "OUT", "--sandbox", "runner"], "runner_token_file is"),
    (["eval", "quickstart:1", "--model", "m", "--out", "OUT", "--url", "http://127.0.0.1:1/v1"],
     "did not respond"),
    (["eval", "quickstart:1", "--model", "m", "--out", "OUT", "--url", "localhost:8000"],
    "is not a base URL"), (["eval", "quickstart:1", "--model", "m", "--out", "RECIPE"],
    "is not writable"), (["train", "--recipe", "RECIPE", "--set", "run_dir=RECIPE/run"],
    "is not writable"), (["train", "quickstart-eval", "--model", "nowhere"],
    "'nowhere' is not a checkpoint"), (["show", "nowhere.parquet"],
    "nowhere.parquet is not a file: pass one such as RUN_DIR/rollouts/"), (["train", "--recipe", "RECIPE",
    "--set", "stepz=3"], "Did you mean steps?"),
])  # fmt: skip
def test_errors_are_one_line(
    recipe: Path, tmp_path: Path, args: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.evaluation.backends.wait_random_exponential", lambda **_: lambda _: 0)
    words = {"RECIPE": str(recipe), "OUT": str(tmp_path / "out")}
    result = RUN.invoke(app, [words.get(arg, arg).replace("RECIPE", str(recipe)) for arg in args])
    assert result.exit_code == 2
    assert "error" in result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
