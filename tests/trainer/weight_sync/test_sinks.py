"""Weight sinks, with fake and real servers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from service.deferral.policy import DeferralPolicy
from service.engines.checkpoint import verify
from service.engines.settings import TransformersSettings
from service.engines.tokenizer import HFTokenizer
from service.engines.transformers.engine import TransformersEngine
from service.engines.transformers.weight_loading import read_weights
from tests.support.scripted import ScriptedSandbox, printed
from tests.support.serving import ask, make_app, serve
from tests.support.tiny_qwen3 import make_checkpoint, make_model, make_tokenizer
from trainer.weight_sync.senders import WeightSyncError
from trainer.weight_sync.servers import IHGRPOReload, VLLMReload
from trainer.weight_sync.sinks import CheckpointSink, EngineSink, SinkChain

KEY = "k-push"
POLICY = DeferralPolicy(prompt="brief-v1", max_turns=2)


def new_weights() -> dict[str, Tensor]:
    return dict(make_model(make_tokenizer(), seed=1).state_dict())


class Target:
    """Target that records loaded checkpoints."""

    def __init__(self) -> None:
        self.loaded: list[Path] = []

    async def load(self, checkpoint: Path) -> None:
        verify(checkpoint)
        self.loaded.append(checkpoint)


async def test_weights_are_written_as_checkpoint_and_old_one_removed(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    target = Target()
    sink = CheckpointSink(tmp_path / "w", tiny_checkpoint, POLICY, [target])
    await sink.push(3, new_weights())
    await sink.push(4, new_weights())
    assert [path.name for path in target.loaded] == ["weights-000003", "weights-000004"]
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["weights-000004"]
    [_, path] = target.loaded
    assert path.is_absolute()
    assert DeferralPolicy.load(path) == POLICY
    model = str(path)
    read = read_weights(model, AutoConfig.from_pretrained(model), HFTokenizer(model), torch.float32)
    torch.testing.assert_close(dict(read), new_weights(), atol=0, rtol=0)


async def test_weights_have_dtype_of_model(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    target = Target()
    await CheckpointSink(tmp_path / "w", model, POLICY, [target]).push(0, new_weights())
    weights = load_file(target.loaded[0] / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


async def test_ih_grpo_server_reloads(tmp_path: Path) -> None:
    """The next answer must be that of a server with the new weights."""
    answers = []
    for seed in (0, 1):
        checkpoint = make_checkpoint(tmp_path / f"seed-{seed}", seed=seed)
        engine = TransformersEngine(TransformersSettings(model=str(checkpoint), model_name="m", threads=1))
        sandbox = ScriptedSandbox(lambda blocks: printed(""))
        app = make_app(engine, sandbox, POLICY, api_keys=f"{KEY} scope=admin", reload_root=tmp_path / "w")
        async with serve(app, KEY) as served:
            answers.append(await ask(served))
            if seed == 0:
                target = IHGRPOReload(f"{served.url}/v1", KEY)
                own = TransformersEngine(TransformersSettings(model=str(checkpoint), threads=1))
                await own.start()
                elsewhere = CheckpointSink(tmp_path / "w", checkpoint, POLICY, [target])
                await SinkChain(EngineSink(own), elsewhere).push(0, new_weights())
                await own.stop()
                followed = await ask(served)
                with pytest.raises(WeightSyncError, match=r"/admin/reload answered 401"):
                    await IHGRPOReload(served.url, "wrong").load(tmp_path / "w")
                with pytest.raises(WeightSyncError, match=r"answered 403.*not below reload_root"):
                    await target.load(tmp_path)
    assert answers[0] != answers[1] == followed


async def test_names_unreachable_server() -> None:
    with pytest.raises(WeightSyncError, match=r"http://127\.0\.0\.1:9/admin/reload: ConnectError"):
        await IHGRPOReload("http://127.0.0.1:9", None).load(Path("x"))


class VLLM:
    """Fake of vLLM's development routes that records requests."""

    def __init__(self, answers: Mapping[str, httpx.Response]) -> None:
        self.asked: list[str] = []
        self._answers = answers

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.raw_path.decode())
        return self._answers.get(request.url.path, httpx.Response(200, json={}))


@pytest.mark.parametrize(("answers", "message"), [
    ({"/reset_prefix_cache": httpx.Response(200, json={"success": True})}, None),
    ({"/reset_prefix_cache": httpx.Response(200, json={"success": False})}, "could not drop its prefix"),
    ({"/collective_rpc": httpx.Response(404, text="no")}, "404 .start vLLM with VLLM_SERVER_DEV_MODE=1"),
    ({"/collective_rpc": httpx.Response(500, text="shapes")}, "answered 500: shapes"),
])  # fmt: skip
async def test_vllm_server_is_paused_reloaded_and_resumed(
    monkeypatch: pytest.MonkeyPatch, answers: Mapping[str, httpx.Response], message: str | None
) -> None:
    server = VLLM(answers)

    def client(url: str, key: str | None) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=url, transport=httpx.MockTransport(server))

    monkeypatch.setattr("trainer.weight_sync.servers.server_client", client)
    load = VLLMReload("http://v", None).load(Path("/w"))
    if message is None:
        await load
        assert server.asked == ["/pause?mode=abort", "/collective_rpc", "/reset_prefix_cache", "/resume"]
    else:
        with pytest.raises(WeightSyncError, match=message):
            await load
        assert server.asked[-1] == "/resume"
