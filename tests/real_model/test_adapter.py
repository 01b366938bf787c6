"""The shipped adapter: its files, and, with a base model, episodes in which it defers code.

Set ``IHGRPO_REAL_MODEL`` to the directory of Qwen2.5-Coder-0.5B-Instruct for the episodes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from service.deferral.episode import Outcome
from service.deferral.policy import DeferralPolicy
from service.engines.adapters import is_adapter, merged
from service.engines.base import Sampling
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from service.episode.runner import EpisodeRunner
from service.sandbox.base import ExecutionResult
from tests.support.scripted import ScriptedSandbox
from trainer.quickstart.traces import Notebook
from trainer.training.episodes import Sample, sample_episode

ADAPTER = Path(__file__).parents[2] / "checkpoints" / "qwen2.5-coder-0.5b-ih-grpo"
BASE = os.environ.get("IHGRPO_REAL_MODEL", "")


def test_adapter_is_small_and_names_its_base() -> None:
    assert is_adapter(ADAPTER)
    weights = ADAPTER / "adapter_model.safetensors"
    assert weights.stat().st_size < 20e6
    with safe_open(weights, framework="pt") as tensors:
        names = list(tensors.keys())
        assert {tensors.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert any("trainable_tokens" in name for name in names), "the marker's row"
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    assert len(json.loads((ADAPTER / "base.json").read_text())["sha256"]) == 64


def test_policy_and_card() -> None:
    policy = DeferralPolicy.load(ADAPTER)
    assert (policy.mode, policy.unflushed, policy.answer) == ("deferred", "run", "any")
    card = (ADAPTER / "README.md").read_text()
    for heading in ("## Use", "## Training data", "## Results", "## Weaknesses", "## Base model"):
        assert heading in card


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path(BASE, "config.json").is_file(), reason="IHGRPO_REAL_MODEL is not set")
async def test_model_defers_code_and_still_chats() -> None:
    directory = merged(ADAPTER, Path(BASE))
    policy = DeferralPolicy.load(directory).model_copy(update={"max_episode_tokens": 1024})
    engine = TransformersEngine(TransformersSettings(model=str(directory), max_slots=3, max_context=1024))

    def run(blocks: list[str]) -> ExecutionResult:
        return Notebook().run("\n".join(blocks))

    runner = EpisodeRunner(engine, ScriptedSandbox(run), policy, Sampling(temperature=0.0))
    await engine.start()
    try:

        async def ask(question: str) -> Sample:
            prompt = runner.render([{"role": "user", "content": question}], deferral=True)
            return await sample_episode(runner, prompt, seed=0, episode_id="e")

        product = await ask("What is 1234 * 5678 + 91?")
        change = await ask(
            "A shop sells pens for 3 dollars and mugs for 7 dollars. Ana buys 14 pens and 9 mugs and pays "
            "with 150 dollars. How much change does she get?"
        )
        hello = await ask("Hello! Who are you?")
    finally:
        await engine.stop()
    assert product.answer == "7006743"
    assert change.answer == "45"
    assert change.delayed == 2
    assert [tool.requested_by for tool in change.tools] == ["model"]
    assert not hello.tools
    assert hello.outcome == Outcome.ANSWER
