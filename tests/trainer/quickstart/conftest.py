from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from service.deferral.policy import DeferralPolicy
from trainer.quickstart.config import WarmStartConfig
from trainer.quickstart.warm_start import make_tokenizer


@pytest.fixture(scope="session")
def tiny() -> WarmStartConfig:
    """A recipe that trains for a second and gives a useless model."""
    return WarmStartConfig(
        steps=6,
        drill_steps=2,
        batches_per_step=2,
        batch_tokens=960,
        warmup_steps=1,
        hidden_size=16,
        layers=1,
        heads=2,
        head_dim=8,
        intermediate_size=16,
        measure_every=3,
        save_every=2,
        policy=DeferralPolicy(prompt="brief-v1", max_turn_tokens=64, max_episode_tokens=512),
    )


@pytest.fixture(scope="session")
def tokenizer(tiny: WarmStartConfig) -> PreTrainedTokenizerFast:
    return make_tokenizer(tiny)
