from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.deferral.policy import DeferralPolicy


def test_round_trip(tmp_path: Path) -> None:
    policy = DeferralPolicy(mode="immediate", prompt="brief-v1", max_turns=3, run_limit_s=1.5)
    policy.save(tmp_path)
    assert DeferralPolicy.load(tmp_path) == policy


def test_a_checkpoint_without_one_gets_the_papers_defaults(tmp_path: Path) -> None:
    policy = DeferralPolicy.load(tmp_path)
    assert (policy.max_turns, policy.max_turn_tokens, policy.max_episode_tokens, policy.run_limit_s) == (
        5, 8000, 16000, 3.0,
    )  # fmt: skip


def test_a_file_of_version_1_is_a_deferring_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "deferral.json").write_text('{"schema_version": 1, "max_turns": 3}')
    policy = DeferralPolicy.load(tmp_path)
    assert policy == DeferralPolicy(max_turns=3)
    assert (policy.schema_version, policy.mode) == (2, "deferred")


@pytest.mark.parametrize("text", [
    "{", "[]", '{"max_turns": 0}', '{"turns": 5}', '{"prompt": "none"}', '{"schema_version": 3}',
    '{"mode": "eager"}',
    '{"schema_version": 1, "mode": "immediate"}',
])  # fmt: skip
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "deferral.json").write_text(text)
    with pytest.raises(ValidationError):
        DeferralPolicy.load(tmp_path)
