"""From recipe to answer: train through a runner, serve, and get what the trainer's own rollout gives."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import openai
import pytest

from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.engines.checkpoint import quickstart
from service.episode.runner import EpisodeRunner
from service.sandbox.docker.settings import DockerSandboxSettings
from tests.e2e.server import start
from tests.support.until import until
from trainer.training.checkpoints import latest
from trainer.training.episodes import Sample, sample_episode
from trainer.training.runtime_config import RuntimeConfig
from trainer.training.setup import make_engine, make_sandbox, start_all

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
QUESTIONS = ("What is 739184 times 52967?", "Find the lcm of 91234 and 120988.")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeConfig]:
    """Settings that run code in a runner, which is a separate process."""
    directory = tmp_path_factory.mktemp("runner")
    socket, token = directory / "runner.sock", directory / "token"
    token.write_text("t" * 40)
    token.chmod(0o600)
    command = [
        sys.executable, "-m", "service", "runner", "--bind", f"unix:{socket}", "--token-file", str(token),
        "--image", DockerSandboxSettings().image, "--warm-containers", "2", "--max-sessions", "4",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        asyncio.run(until(socket.is_socket, timeout_s=120))
        yield RuntimeConfig(
            device="cpu", threads=1, engine_slots=8, max_concurrent_episodes=4, sandbox="runner",
            runner_address=f"unix:{socket}", runner_token_file=token,
        )  # fmt: skip
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def train(machine: RuntimeConfig, run_dir: Path, method: str) -> Path:
    values = {
        **machine.model_dump(mode="json", exclude_defaults=True), "method": method, "run_dir": str(run_dir),
        "model": str(quickstart()), "steps": 1, "prompts_per_step": 2, "oversample": 1.0, "group_size": 4,
        "min_valid_samples": 2, "min_group_std": 0.0, "micro_batch_samples": 4, "save_every": 1,
        "lr_schedule": "constant", "warmup_steps": 0, "tensorboard": "false",
        "validation.limit": 2,
    }  # fmt: skip
    command = [sys.executable, "-m", "service", "train", "--recipe", "recipes/quickstart.toml"]
    for name, value in values.items():
        command += ["--set", f"{name}={value}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    checkpoint = latest(run_dir / "checkpoints")
    assert checkpoint is not None
    assert f"ih-grpo serve --model {checkpoint}" in done.stderr
    return checkpoint


async def trainers_rollout(machine: RuntimeConfig, checkpoint: Path) -> list[Sample]:
    """At temperature 0, by the engine, the sandbox and the loop of training."""
    policy = DeferralPolicy.load(checkpoint)
    engine = make_engine(machine, checkpoint, policy, "cpu")
    sandbox = make_sandbox(machine, policy)
    runner = EpisodeRunner(engine, sandbox, policy, Sampling(temperature=0))
    async with AsyncExitStack() as stack:
        await start_all(stack, sandbox, engine)
        samples = []
        for question in QUESTIONS:
            prompt = runner.render([{"role": "user", "content": question}], deferral=True)
            samples.append(await sample_episode(runner, prompt, seed=0, episode_id=question))
        return samples


@pytest.mark.parametrize(("method", "mode"), [("ih-grpo", "deferred"), ("grpo-immediate", "immediate")])
def test_served_checkpoint_matches_training(
    tmp_path: Path, machine: RuntimeConfig, method: str, mode: str
) -> None:
    checkpoint = train(machine, tmp_path / "run", method)
    trained = DeferralPolicy.load(checkpoint)
    assert trained.mode == mode
    assert trained.max_turn_tokens == 256  # the recipe's, not the first checkpoint's
    samples = asyncio.run(trainers_rollout(machine, checkpoint))
    assert any(sample.tools for sample in samples)
    if mode == "immediate":
        assert all(len(tool.blocks) == 1 for sample in samples for tool in sample.tools)
    engine = make_engine(machine, checkpoint, trained, "cpu")

    server = start(checkpoint)
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
            assert client.models.retrieve("quickstart").model_dump()["deferral"] == trained.model_dump()
            for question, sample in zip(QUESTIONS, samples, strict=True):
                reply = client.chat.completions.create(
                    model="quickstart",
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    logprobs=True,
                )
                choice = reply.choices[0]
                assert reply.usage is not None
                assert reply.usage.prompt_tokens == len(sample.prompt_ids)
                assert choice.logprobs is not None
                served = [token.token for token in choice.logprobs.content or ()]
                ids = [i for i, written in zip(sample.ids, sample.sampled, strict=True) if written]
                # The API doesn't return the end token.
                shown = [i for i in ids if i not in engine.eos_token_ids]
                assert served == [engine.tokenizer.decode([i]) for i in shown]
                tools = choice.message.model_dump().get("executed_tools") or []
                assert [tool["output"] for tool in tools] == [tool.output for tool in sample.tools]
    finally:
        server.stop()
