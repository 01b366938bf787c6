"""New weights into a server that runs, over real HTTP with a real engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from service.deferral.policy import DeferralPolicy
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, ask, make_app, serve
from tests.support.tiny_qwen3 import make_checkpoint

KEY = "k-reload"
KEYS = f"{KEY} scope=admin, k-user"
POLICY = DeferralPolicy(prompt="brief-v1", max_episode_tokens=300)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncGenerator[Served, None]:
    """A server of ``first``; beside it ``second`` has other weights and another policy."""
    POLICY.save(make_checkpoint(tmp_path / "first"))
    POLICY.model_copy(update={"max_turns": 2}).save(make_checkpoint(tmp_path / "second", seed=1))
    engine = TransformersEngine(
        TransformersSettings(model=str(tmp_path / "first"), model_name="m", threads=1)
    )
    sandbox = ScriptedSandbox(lambda blocks: printed("1"))
    app = make_app(engine, sandbox, POLICY, api_keys=KEYS, reload_root=tmp_path)
    async with serve(app, KEY) as running:
        yield running


async def reload(served: Served, model: str, key: str = KEY) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=60) as client:
        return await client.post("/admin/reload", json={"model": model})


async def test_reload_takes_effect_on_the_next_reply(served: Served) -> None:
    engine = served.app.state.server.engine
    first = await ask(served)
    assert await ask(served) == first
    cached = engine.stats().cached_tokens
    assert cached > 0
    answer = await reload(served, "second")
    assert answer.status_code == 200, answer.text
    assert answer.json()["deferral"]["max_turns"] == 2
    second = await ask(served)
    assert engine.stats().cached_tokens == cached  # keys and values of the old weights are not used
    assert second != first
    assert (await served.openai.models.retrieve("m")).model_dump()["deferral"]["max_turns"] == 2
    assert (await reload(served, "first")).status_code == 200
    assert await ask(served) == first


async def test_reload_does_not_drop_running_replies(served: Served) -> None:
    stream = await served.openai.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "?"}],
        temperature=0,
        max_tokens=250,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"deferral": {"enabled": False}},
    )
    chunks = [await anext(stream) for _ in range(5)]
    assert (await reload(served, "second")).status_code == 200
    chunks += [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")


def _cut(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _cut_by_the_manifest(directory: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    (directory / "manifest.json").write_text(json.dumps(sizes))
    _cut(directory)


def _lose_a_weight(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _lose_all(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def _other_shape(directory: Path) -> None:
    make_checkpoint(directory, intermediate_size=64)


def _other_theta(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 123.0, "rope_type": "default"}
    (directory / "config.json").write_text(json.dumps(config))


def _other_policy(directory: Path) -> None:
    (directory / "deferral.json").write_text('{"max_turns": 0}')


@pytest.mark.parametrize(("spoil", "message"), [
    (_cut, "can't be read"),
    (_cut_by_the_manifest, "model.safetensors is missing or incomplete"),
    (_lose_a_weight, "missing in .*up_proj"),
    (_lose_all, "can't be read"),
    (_other_shape, "intermediate_size is 64"),
    (_other_theta, "rope"),
    (_other_policy, "deferral.json is invalid"),
])  # fmt: skip
@pytest.mark.filterwarnings("default")  # torch warns of the file that it could not read
async def test_incomplete_checkpoint_keeps_the_old_weights(
    served: Served, tmp_path: Path, spoil: Any, message: str
) -> None:
    first = await ask(served)
    spoil(tmp_path / "second")
    answer = await reload(served, "second")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "model", "invalid_checkpoint")
    assert "the old weights stay" in error["message"]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error["message"])
    assert await ask(served) == first


@pytest.mark.parametrize("model", ["..", "/etc", "../../etc/passwd", "link", "a\0b"])
async def test_rejects_checkpoints_outside_of_the_root(served: Served, tmp_path: Path, model: str) -> None:
    (tmp_path / "link").symlink_to("/etc")
    answer = await reload(served, model)
    assert answer.status_code in (403, 404), answer.text
    assert "passwd" not in answer.text


async def test_ordinary_key_cannot_reload(served: Served) -> None:
    first = await ask(served)
    for model in ("second", "nowhere", "/etc"):
        answer = await reload(served, model, key="k-user")
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (
            403, "invalid_request_error", "missing_scope",
        )  # fmt: skip
        assert "ih-grpo keys create --admin" in error["message"]
    assert await ask(served) == first


async def test_reloads_are_exclusive_and_need_a_key(served: Served) -> None:
    assert (await reload(served, "second", key="wrong")).status_code == 401
    answers = await asyncio.gather(*(reload(served, "second") for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    assert (await reload(served, "nowhere")).status_code == 404


async def test_reload_is_disabled_by_default(tmp_path: Path) -> None:
    sandbox = ScriptedSandbox(lambda blocks: printed(""))
    engine = TransformersEngine(TransformersSettings(model=str(make_checkpoint(tmp_path)), model_name="m"))
    async with serve(make_app(engine, sandbox, api_keys=KEYS), KEY) as served:
        answer = await reload(served, ".")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "reload_disabled")
    async with serve(
        make_app(ScriptedEngine(EOS), sandbox, api_keys=KEYS, reload_root=tmp_path), KEY
    ) as served:
        assert (await reload(served, ".")).status_code == 501


async def test_reload_is_rejected_without_keys() -> None:
    async with serve(make_app(ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed("")))) as served:
        answer = await reload(served, ".")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope")


@pytest.mark.parametrize("keys", ["", "k-user"])
def test_reload_root_requires_an_admin_key(tmp_path: Path, keys: str) -> None:
    sandbox = ScriptedSandbox(lambda blocks: printed(""))
    with pytest.raises(ValueError, match="requires an admin API key"):
        make_app(ScriptedEngine(EOS), sandbox, reload_root=tmp_path, api_keys=keys)
