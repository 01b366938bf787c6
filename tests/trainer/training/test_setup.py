from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pytest

from service.deferral.policy import DeferralPolicy
from service.sandbox.base import SandboxError
from service.sandbox.bubblewrap.sandbox import ProcessSandbox
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.runner.client import RunnerClient
from tests.support.char_tokenizer import CharTokenizer
from trainer.data.problems import DataError
from trainer.training import memory_reservation
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.runtime_config import RuntimeConfig
from trainer.training.setup import engine_dtype, load_training_set, make_engine, make_sandbox, start_all

POLICY = DeferralPolicy(run_limit_s=7.0, max_episode_tokens=300)


@pytest.fixture(autouse=True)
def reservations(tmp_path: Path) -> Iterator[Path]:
    """Folder of reservations that other processes and tests do not use."""
    with patch.object(memory_reservation, "reservations_dir", lambda: tmp_path / "reservations"):
        yield tmp_path / "reservations"


@pytest.mark.parametrize(("name", "kind"), [("in-process", DockerSandbox), ("process", ProcessSandbox)])
def test_pool_has_long_timeout_and_requested_size(name: str, kind: type) -> None:
    sandbox: Any = make_sandbox(RuntimeConfig.model_validate({"sandbox": name, "max_containers": 1}), POLICY)
    assert isinstance(sandbox, kind)
    settings = sandbox.settings
    assert (settings.max_containers, settings.pool_size, settings.run_limit_ceiling_s) == (1, 1, 30.0)
    assert settings.queue_timeout_s >= 600


@pytest.mark.parametrize(("gigabytes", "containers"), [(1, 4), (24, 24), (256, 48)])
def test_containers_are_limited_by_memory(gigabytes: int, containers: int) -> None:
    config = RuntimeConfig(max_concurrent_episodes=48)
    with patch("trainer.training.setup.available_memory", return_value=gigabytes << 30):
        sandbox: Any = make_sandbox(config, POLICY)
    assert sandbox.settings.max_containers == containers


def test_second_run_plans_with_the_rest_of_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    config = RuntimeConfig(max_concurrent_episodes=48)
    with patch("trainer.training.setup.available_memory", return_value=24 << 30):
        first: Any = make_sandbox(config, POLICY)
        assert "other runs" not in capsys.readouterr().err
        second: Any = make_sandbox(config, POLICY)
        warning = " ".join(capsys.readouterr().err.split())
        del first
        gc.collect()
        third: Any = make_sandbox(config, POLICY)
        explicit: Any = make_sandbox(RuntimeConfig(max_containers=40), POLICY)
    assert second.settings.max_containers == 12
    assert "max_containers is 12 instead of 24: the containers of other runs here may use 12.0 GiB" in warning
    assert third.settings.max_containers == 18
    assert explicit.settings.max_containers == 40
    warning = " ".join(capsys.readouterr().err.split())
    assert "may use 15.0 GiB, which leaves 9.0 GiB, and those of this run may use 20.0 GiB" in warning


def test_runner_sandbox(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("x" * 40 + "\n")
    secret.chmod(0o600)
    config = RuntimeConfig(sandbox="runner", runner_token_file=secret, runner_address="127.0.0.1:9")
    assert isinstance(make_sandbox(config, POLICY), RunnerClient)
    several = RuntimeConfig(
        sandbox="runner",
        runner_token_file=secret,
        runner_address="a:1, b:2",  # type: ignore[arg-type]
    )
    client = make_sandbox(several, POLICY)
    assert isinstance(client, RunnerClient)
    assert [status.address for status in client.runners()] == ["a:1", "b:2"]
    with pytest.raises(ValueError, match=r"absent\.pem"):
        make_sandbox(several.model_copy(update={"runner_ca_file": tmp_path / "absent.pem"}), POLICY)


def test_engine_context_fits_one_episode(tiny_checkpoint: Path) -> None:
    engine = make_engine(RuntimeConfig(engine_slots=3), tiny_checkpoint, POLICY, "cpu")
    assert engine.context_length == 300


def training_config(tmp_path: Path) -> TrainConfig:
    path = tmp_path / "p.jsonl"
    rows = [
        {"question": "1 + 1?", "answer": "2"},
        {"question": "x" * 400, "answer": "2"},
        {"question": "?", "answer": ""},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainConfig(model="m", data=(str(path), "quickstart:3"), run_dir=tmp_path / "run")


def test_skips_and_reports_too_long_prompts(tmp_path: Path) -> None:
    policy = DeferralPolicy(prompt="brief-v1", max_episode_tokens=300)
    data = load_training_set(training_config(tmp_path), CharTokenizer(), policy)
    assert (len(data.problems), data.too_long, data.without_answer) == (4, 1, 1)
    assert str(data) == "4 problems (skipped: 1 too long, 1 without an answer, 0 with a bad gold answer)"


def test_contaminated_problems_are_skipped_and_reported(tmp_path: Path) -> None:
    shared = "a train leaves the station at noon and travels north at sixty miles per hour"
    benchmark = tmp_path / "exam.jsonl"
    benchmark.write_text(json.dumps({"question": f"{shared} for three hours", "answer": "("}) + "\n")
    path = tmp_path / "train.jsonl"
    questions = [f"Yesterday {shared}.", "1 + 1?"]
    path.write_text("".join(json.dumps({"question": q, "answer": "2"}) + "\n" for q in questions))
    config = TrainConfig(model="m", data=(str(path),), run_dir=tmp_path, decontaminate=(str(benchmark),))
    policy = DeferralPolicy(prompt="brief-v1", max_episode_tokens=300)
    data = load_training_set(config, CharTokenizer(), policy)
    assert [problem.question for problem in data.problems] == ["1 + 1?"]
    assert str(data).endswith("0 with a bad gold answer, 1 contaminated)")
    assert str(data.overlaps).startswith(
        "1 of 2 problems (50.00%) overlap with evaluation problems (13-grams;"
    )
    kept = load_training_set(config.model_copy(update={"decontaminate_share": 0.9}), CharTokenizer(), policy)
    assert len(kept.problems) == 2
    path.write_text(json.dumps({"question": shared, "answer": "2"}) + "\n")
    with pytest.raises(DataError, match="every training problem overlaps"):
        load_training_set(config, CharTokenizer(), policy)


def test_rejects_model_without_marker(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no token '<run>'"):
        load_training_set(training_config(tmp_path), CharTokenizer(), DeferralPolicy(marker="<run>"))


async def test_failed_start_stops_started_parts() -> None:
    events: list[str] = []

    class Part:
        def __init__(self, name: str, *, works: bool) -> None:
            self.name, self.works = name, works

        async def start(self) -> None:
            if not self.works:
                raise SandboxError(self.name)
            events.append(f"{self.name} started")

        async def stop(self) -> None:
            events.append(f"{self.name} stopped")

    engine: Any = Part("engine", works=False)
    sandbox: Any = Part("sandbox", works=True)
    with pytest.raises(SandboxError, match="engine"):
        async with AsyncExitStack() as stack:
            await start_all(stack, sandbox, engine)
    assert events == ["sandbox started", "engine stopped", "sandbox stopped"]


@pytest.mark.parametrize(
    ("dtype", "device", "has_gpu", "expected"),
    [
        ("auto", "cpu", True, "float32"),
        ("auto", "auto", False, "float32"),
        ("auto", "auto", True, "auto"),
        ("auto", "cuda:1", True, "auto"),
        ("bfloat16", "cpu", False, "bfloat16"),
        ("float32", "cuda", True, "float32"),
    ],
)
def test_cpu_rollouts_default_to_float32(
    dtype: Literal["auto", "float32", "bfloat16"], device: str, has_gpu: bool, expected: str
) -> None:
    with patch("torch.cuda.is_available", lambda: has_gpu):
        assert engine_dtype(RuntimeConfig(engine_dtype=dtype), device) == expected
