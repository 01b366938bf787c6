from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from service.deferral.policy import DeferralPolicy
from trainer.quickstart.config import RecipeError, WarmStartConfig
from trainer.quickstart.data import IGNORED
from trainer.quickstart.model import build_model, next_token_loss
from trainer.quickstart.warm_start import (
    BatchThreads,
    StepReport,
    describe,
    train_with_progress,
    warm_start,
    with_overrides,
)


class CrashError(Exception):
    pass


def crash_at(step: int, reports: list[StepReport]) -> None:
    if reports[-1].step == step:
        raise CrashError


@pytest.fixture(scope="module")
def finished(
    tiny: WarmStartConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[StepReport]]:
    """Directory and reports of a whole run."""
    directory = tmp_path_factory.mktemp("finished")
    reports: list[StepReport] = []
    warm_start(tiny, directory, reports.append)
    return directory, reports


def test_run_writes_loadable_checkpoint(
    tiny: WarmStartConfig, finished: tuple[Path, list[StepReport]]
) -> None:
    directory, reports = finished
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.step for report in reports if report.number_accuracy is not None] == [3, 6]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.config.model_type == "qwen3"
    assert model.config.max_position_embeddings == 2048
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    assert DeferralPolicy.load(directory) == tiny.policy
    assert len(tokenizer.encode("<tool_call>")) == 1
    left = {file.name for file in directory.iterdir()}
    assert not {name for name in left if "state" in name or name.startswith(".")}
    assert all(file.stat().st_mode & 0o044 for file in directory.iterdir()), "others may read it"


def test_crashed_run_resumes_exactly(
    tiny: WarmStartConfig, finished: tuple[Path, list[StepReport]], tmp_path: Path
) -> None:
    reports: list[StepReport] = []

    def listen(report: StepReport) -> None:
        reports.append(report)
        crash_at(5, reports)

    with pytest.raises(CrashError):
        warm_start(tiny, tmp_path, listen)
    assert not (tmp_path / "model.safetensors").exists()
    resumed: list[StepReport] = []
    warm_start(tiny, tmp_path, resumed.append)
    assert [report.step for report in resumed] == [5, 6]
    whole, cut = (load_file(path / "model.safetensors") for path in (finished[0], tmp_path))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_rejects_state_of_another_recipe(tiny: WarmStartConfig, tmp_path: Path) -> None:
    reports: list[StepReport] = []

    def listen(report: StepReport) -> None:
        reports.append(report)
        crash_at(3, reports)

    with pytest.raises(CrashError):
        warm_start(tiny, tmp_path, listen)
    with pytest.raises(RecipeError, match="another recipe"):
        warm_start(tiny.model_copy(update={"seed": 5}), tmp_path, lambda _: None)


def test_rejects_invalid_output_before_training(tiny: WarmStartConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=r"cannot create .*file .*choose another"):
        warm_start(tiny, tmp_path / "file", lambda _: pytest.fail("it trains"))


def test_threads_compute_gradient_of_all_batches(
    tiny: WarmStartConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build_model(tiny, tokenizer)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 200, (3, 8), generator=generator)
    labels = ids.clone()
    labels[0, :6] = IGNORED
    next_token_loss(model, ids, labels).backward()  # type: ignore[no-untyped-call]
    whole = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    loss = BatchThreads(2).backward(model, [(ids[:1], labels[:1]), (ids[1:], labels[1:])])
    parts = [parameter.grad for parameter in model.parameters()]
    assert loss == pytest.approx(next_token_loss(model, ids, labels).item(), rel=1e-2)
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, atol=0.02 * float(one.abs().max()) + 1e-6)


def test_the_model_learns(tiny: WarmStartConfig, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    config = tiny.model_copy(
        update={"steps": 60, "drill_steps": 0, "learning_rate": 1e-2, "measure_every": 60}
    )
    warm_start(config, tmp_path, reports.append)
    assert reports[-1].loss < 0.6 * reports[0].loss


def test_starts_from_checkpoint(tiny: WarmStartConfig, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    warm_start(tiny.model_copy(update={"steps": 2}), first, lambda _: None)
    # With a learning rate of almost 0, the weights stay the same.
    still = tiny.model_copy(
        update={"steps": 1, "drill_steps": 0, "model": first, "learning_rate": 1e-12, "words": 5}
    )
    warm_start(still, second, lambda _: None)
    before, after = (load_file(path / "model.safetensors") for path in (first, second))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert (first / "tokenizer.json").read_text() == (second / "tokenizer.json").read_text()


def test_overrides_keep_schedule(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("steps = 100\n", encoding="utf-8")
    assert with_overrides(recipe, steps=None, threads=None) == WarmStartConfig(steps=100)
    weak = with_overrides(recipe, steps=40, threads=1)
    assert (weak.steps, weak.learning_steps, weak.threads) == (40, 100, 1)


def test_describe_trains_nothing(tiny: WarmStartConfig, tmp_path: Path) -> None:
    out = io.StringIO()
    describe(tiny, tmp_path / "out", Console(file=out, width=100))
    assert "6 steps of 2 x 960 tokens" in out.getvalue()
    assert "```<tool_call>" in out.getvalue()
    assert not (tmp_path / "out").exists()


def test_progress_reports_measurements(tiny: WarmStartConfig, tmp_path: Path) -> None:
    out = io.StringIO()
    train_with_progress(tiny, tmp_path, Console(file=out, width=200))
    assert "step 3  loss" in out.getvalue()
    assert (tmp_path / "model.safetensors").exists()
