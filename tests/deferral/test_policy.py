from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.deferral.policy import ASSISTANT_POLICY, PAPER_POLICY, DeferralPolicy


def test_round_trip(tmp_path: Path) -> None:
    policy = DeferralPolicy(mode="immediate", prompt="brief-v1", max_turns=3, run_limit_s=1.5)
    policy.save(tmp_path)
    assert DeferralPolicy.load(tmp_path) == policy


def test_policy_of_a_file_of_weights_is_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "model.q8_0.gguf"
    file.touch()
    assert DeferralPolicy.load(file) == PAPER_POLICY
    DeferralPolicy(max_turns=3).save(file)
    assert [path.name for path in tmp_path.glob("*.json")] == ["model.q8_0.gguf.deferral.json"]
    assert DeferralPolicy.load(file).max_turns == 3


def test_defaults_are_those_of_the_paper(tmp_path: Path) -> None:
    policy = DeferralPolicy.load(tmp_path)
    assert (policy.max_turns, policy.max_turn_tokens, policy.max_episode_tokens, policy.run_limit_s) == (
        5, 8000, 16000, 3.0,
    )  # fmt: skip


def test_loads_version_1(tmp_path: Path) -> None:
    (tmp_path / "deferral.json").write_text('{"schema_version": 1, "max_turns": 3}')
    policy = DeferralPolicy.load(tmp_path)
    assert policy == DeferralPolicy(max_turns=3)
    assert (policy.schema_version, policy.mode, policy.unflushed) == (4, "deferred", "drop")


def test_loads_version_2(tmp_path: Path) -> None:
    (tmp_path / "deferral.json").write_text('{"schema_version": 2, "mode": "immediate", "run_limit_s": 1}')
    assert DeferralPolicy.load(tmp_path) == DeferralPolicy(mode="immediate", run_limit_s=1)


def test_a_checkpoint_without_a_file_gets_the_default(tmp_path: Path) -> None:
    assert DeferralPolicy.load(tmp_path) == PAPER_POLICY
    assert DeferralPolicy.load(tmp_path, default=ASSISTANT_POLICY) == ASSISTANT_POLICY
    PAPER_POLICY.save(tmp_path)
    assert DeferralPolicy.load(tmp_path, default=ASSISTANT_POLICY) == PAPER_POLICY


def test_the_assistant_policy_has_the_limits_of_a_code_interpreter() -> None:
    policy = ASSISTANT_POLICY
    assert (policy.max_turns, policy.run_limit_s, policy.max_output_tokens) == (20, 60, 4000)
    assert (policy.traceback, policy.unflushed, policy.answer) == ("full", "run", "any")


@pytest.mark.parametrize("text", [
    "{", "[]", '{"max_turns": 0}', '{"turns": 5}', '{"prompt": "none"}', '{"schema_version": 5}',
    '{"schema_version": 3, "thinking": true}',
    '{"mode": "eager"}',
    '{"schema_version": 1, "mode": "immediate"}', '{"schema_version": 2, "unflushed": "run"}',
    '{"unflushed": "keep"}',
])  # fmt: skip
def test_rejects_an_invalid_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "deferral.json").write_text(text)
    with pytest.raises(ValidationError):
        DeferralPolicy.load(tmp_path)


def test_the_policy_in_the_guide_is_valid() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "real-models.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```json\n(.*?)```", guide, re.DOTALL)
    policy = DeferralPolicy.model_validate_json(block)
    limits = {
        "max_turns",
        "run_limit_s",
        "max_turn_tokens",
        "max_episode_tokens",
        "max_output_tokens",
        "max_output_chars",
    }
    assert policy.model_dump(exclude=limits) == ASSISTANT_POLICY.model_dump(exclude=limits)
