from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from huggingface_hub import ModelCard, constants

from service.deferral.policy import DeferralPolicy
from tests.support.fake_hub import FakeHub, serve_hub
from tests.support.run_dirs import write_checkpoint
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.hub_push import PushError, model_card, prepare_push, push

HISTORY = [
    {"step": 0, "eval_accuracy": 0.25},
    {"step": 10, "eval_accuracy": 0.5},
    {"step": 10, "reward": 0.75, "delay_rate": 0.5, "response_tokens": 120.4},
]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve_hub(FakeHub({})) as served, patch.object(constants, "ENDPOINT", served.url):
        yield served


def config(run_dir: Path, **changes: object) -> TrainConfig:
    values = {"model": "Qwen/Qwen3-1.7B", "data": ["org/problems"], "run_dir": run_dir, **changes}
    return TrainConfig.model_validate({"device": "cpu", **values})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = write_checkpoint(tmp_path, 10, HISTORY, config(tmp_path))
    DeferralPolicy().save(path)
    return path


def test_uploads_checkpoint_without_state_of_run(tmp_path: Path, checkpoint: Path, hub: FakeHub) -> None:
    url = push(checkpoint, config(tmp_path), "org/trained")
    assert url == f"{hub.url}/org/trained"
    assert set(hub.models["org/trained"]) == {
        "README.md", "config.json", "model.safetensors", "deferral.json",
    }  # fmt: skip
    weights = (checkpoint / "model.safetensors").read_bytes()
    assert hub.models["org/trained"]["model.safetensors"] == weights
    assert hub.private["org/trained"]


def test_public_repository(tmp_path: Path, checkpoint: Path, hub: FakeHub) -> None:
    push(checkpoint, config(tmp_path, push_private=False), "org/trained")
    assert not hub.private["org/trained"]


def test_existing_repository_gets_another_commit(tmp_path: Path, checkpoint: Path, hub: FakeHub) -> None:
    for _ in range(2):
        push(checkpoint, config(tmp_path), "org/trained")
    assert sum("/commit/" in request for request in hub.requests) == 2


def test_card_describes_model_and_results(tmp_path: Path, checkpoint: Path) -> None:
    card = ModelCard(model_card(checkpoint, config(tmp_path, method="ih-grpo"), "org/trained"))
    assert card.data.base_model == "Qwen/Qwen3-1.7B"
    assert card.data.datasets == ["org/problems"]
    assert "ih-grpo" in card.data.tags
    assert "| validation accuracy before training | 25.0% |" in card.text
    assert "| validation accuracy | 50.0% |" in card.text
    assert "| training reward, last step | 0.750 |" in card.text
    assert "| `hierarchy_weight` | `0.001` |" in card.text
    assert "ih-grpo serve --model org/trained" in card.text


def test_card_has_no_path_of_this_machine(tmp_path: Path, checkpoint: Path) -> None:
    secret = tmp_path / "secret-place"
    settings = config(
        tmp_path, model=str(secret / "model"), data=[str(secret / "problems.jsonl")],
        generation_key_file=secret / "key", weights_dir=secret / "weights",
    )  # fmt: skip
    card = model_card(checkpoint, settings, "org/trained")
    assert "secret-place" not in card
    assert str(tmp_path) not in card
    assert "problems.jsonl" in card


def test_card_has_no_adapter_and_no_address_of_tools(tmp_path: Path, checkpoint: Path) -> None:
    tools = [
        {"mcp_server": "https://host/mcp?token=abc", "allowed_tools": ["search"]},
        {"mcp_server": "/home/me/server --key abc"},
        {"function": "my_package.tools:search", "read_only": True},
    ]
    settings = config(tmp_path, lora={"adapter": tmp_path / "adapter", "rank": 8}, tools=tools)
    card = model_card(checkpoint, settings, "org/trained")
    assert str(tmp_path) not in card
    assert "adapter" not in card.partition("Recipe")[2]
    assert not any(part in card for part in ("token=abc", "https://host", "/home/me", "mcp_server"))
    assert all(part in card for part in ('"rank": 8', "my_package.tools:search", '"search"'))


def test_card_has_no_options_of_custom_rewards(tmp_path: Path, checkpoint: Path) -> None:
    rewards = [
        {"name": "my_package.rewards:judge", "options": {"api_key": "sk-secret", "port": 8123}},
        {"name": "length", "weight": 0.5, "options": {"soft_limit": 100, "hard_limit": 900}},
        {"name": "format", "options": {"marker": "/home/me/marker"}},
    ]
    card = model_card(checkpoint, config(tmp_path, rewards=rewards), "org/trained")
    assert not any(part in card for part in ("sk-secret", "api_key", "8123", "/home/me"))
    assert '{"name": "my_package.rewards:judge", "weight": 1.0}' in card
    assert '{"name": "length", "weight": 0.5, "options": {"soft_limit": 100, "hard_limit": 900}}' in card
    assert '{"name": "format", "weight": 1.0}' in card


def test_missing_write_access_is_reported_before_and_after_run(
    tmp_path: Path, checkpoint: Path, hub: FakeHub
) -> None:
    hub.writable = False
    with pytest.raises(
        ConfigError, match=r"push_to: cannot write to org/trained: the hub rejected the token"
    ):
        prepare_push(config(tmp_path, push_to="org/trained"))
    with pytest.raises(PushError, match="HF_TOKEN"):
        push(checkpoint, config(tmp_path), "org/trained")


def test_repository_is_created_before_run(tmp_path: Path, hub: FakeHub) -> None:
    prepare_push(config(tmp_path))
    assert hub.requests == []
    prepare_push(config(tmp_path, push_to="org/trained"))
    assert hub.models == {"org/trained": {}}
    hub.writable = False  # the repository exists, but belongs to others
    with pytest.raises(ConfigError, match="cannot write to org/trained"):
        prepare_push(config(tmp_path, push_to="org/trained"))


def test_rejects_push_while_offline(tmp_path: Path) -> None:
    with (
        patch.object(constants, "HF_HUB_OFFLINE", True),
        pytest.raises(ConfigError, match="HF_HUB_OFFLINE"),
    ):
        prepare_push(config(tmp_path, push_to="org/trained"))


@pytest.mark.parametrize("name", ["trained", "org/a/b", "https://hub/org/a"])
def test_rejects_invalid_repository_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a repository: use a name such as org/name"):
        config(tmp_path, push_to=name)
