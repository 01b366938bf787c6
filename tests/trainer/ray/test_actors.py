from __future__ import annotations

from pathlib import Path

import pytest

from service.engines.checkpoint import quickstart
from service.engines.tokenizer import HFTokenizer
from service.sandbox.base import Session, SessionLimits
from service.tools.base import ToolHost
from tests.support.scripted import ScriptedSandbox, printed
from trainer.ray import actors
from trainer.training.config import TrainConfig


class RecordingSandbox(ScriptedSandbox):
    """Records the tools of its sessions."""

    def __init__(self) -> None:
        super().__init__(lambda blocks: printed("1"))
        self.tools: list[ToolHost | None] = []

    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> Session:
        self.tools.append(tools)
        return super().session(limits)


async def test_an_actor_opens_the_tools_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = RecordingSandbox()
    monkeypatch.setattr(actors, "make_sandbox", lambda config, policy: sandbox)
    config = TrainConfig.model_validate(
        {
            "model": str(quickstart()), "data": ["d"], "run_dir": Path("unused"), "device": "cpu",
            "threads": 1,
            "policy": {"max_turn_tokens": 8, "max_episode_tokens": 64, "max_turns": 1},
            "tools": [{"function": "trainer.environments.multi_hop:search"}],
        }
    )  # fmt: skip
    actor = actors.RolloutActor(config, config.resolve_policy(quickstart()))
    try:
        prompt = HFTokenizer(str(quickstart())).encode("Who?", allow_special=False)
        sample = await actor.run_episode(prompt, 1, "e", 0, [])
    finally:
        await actor.stop()
    assert sample.ids
    [tools] = sandbox.tools
    assert tools is not None
    assert [spec.name for spec in tools.specs] == ["search"]
