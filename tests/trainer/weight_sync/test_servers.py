"""Requests to vLLM servers and their order."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import torch

from tests.support.tiny_qwen3 import make_model, make_tokenizer
from trainer.weight_sync.senders import Sender, TransferControl, WeightSource, WeightSyncError
from trainer.weight_sync.servers import VLLMServers
from trainer.weight_sync.sinks import TransferSink, address_towards

SIZES = {"a": 2, "b": 1}


class Fleet:
    """Fake servers by host that answer like vLLM 0.32 and record requests."""

    def __init__(self, **answers: httpx.Response) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self._answers = answers

    def __call__(self, request: httpx.Request) -> httpx.Response:
        host, path = request.url.host, request.url.raw_path.decode()
        assert request.headers["Authorization"] == "Bearer k"
        self.asked.append((host, path, json.loads(request.content or b"null")))
        if (answer := self._answers.get(path.strip("/").partition("?")[0])) is not None:
            return answer
        if path == "/get_world_size":
            return httpx.Response(200, json={"world_size": SIZES[host]})
        return httpx.Response(200, json={"success": True})

    def of(self, host: str) -> list[tuple[str, Any]]:
        return [(path, body) for where, path, body in self.asked if where == host]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(fleet: Fleet) -> VLLMServers:
        client = httpx.AsyncClient
        monkeypatch.setattr(
            httpx, "AsyncClient", lambda **options: client(**options, transport=httpx.MockTransport(fleet))
        )
        return VLLMServers(["http://a:1/v1", "http://b:2"], "k")

    return make


def test_workers_of_each_server_have_distinct_ranks(servers: Any) -> None:
    fleet = Fleet()
    control = servers(fleet)
    assert control.world_size() == 3
    control.init_weight_transfer_engine({"rank_offset": 1, "world_size": 4})
    path = "/init_weight_transfer_engine"
    assert fleet.of("a")[1:] == [(path, {"init_info": {"rank_offset": 1, "world_size": 4}})]
    assert fleet.of("b")[1:] == [(path, {"init_info": {"rank_offset": 3, "world_size": 4}})]


class Recorded:
    """A sender that sends nothing."""

    def __init__(self, control: TransferControl, source: WeightSource) -> None:
        self._control, self._source = control, source

    def send_weights(self) -> None:
        self._control.start_weight_update()
        self._control.update_weights(self._source.update_info())
        self._control.finish_weight_update()


def sink(control: VLLMServers, model_dir: Any, monkeypatch: pytest.MonkeyPatch) -> TransferSink:
    def open_sender(backend: str, control: TransferControl, source: WeightSource, *where: object) -> Sender:
        return Recorded(control, source)

    monkeypatch.setattr("trainer.weight_sync.sinks.open_sender", open_sender)
    return TransferSink("gloo", control, model_dir, host="127.0.0.1", shared=True)


async def test_server_is_paused_during_transfer(
    servers: Any, tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet()
    weights = make_model(make_tokenizer(), seed=1).state_dict()
    await sink(servers(fleet), tiny_checkpoint, monkeypatch).push(4, weights)
    asked = dict(fleet.of("b"))
    assert list(asked) == [
        "/pause?mode=abort", "/start_weight_update", "/update_weights", "/finish_weight_update",
        "/reset_prefix_cache", "/resume",
    ]  # fmt: skip
    info = asked["/update_weights"]["update_info"]
    assert "model.embed_tokens.weight" in info["names"]
    assert "lm_head.weight" not in info["names"]  # tied weights are sent once
    assert info["shapes"][0] == list(weights["model.embed_tokens.weight"].shape)
    assert set(info["dtype_names"]) == {"float32"}
    assert asked["/finish_weight_update"] == {"weight_version": "rollout-4"}


@pytest.mark.parametrize(("path", "answer", "message"), [
    ("update_weights", httpx.Response(500, text="shapes"), "/update_weights answered 500: shapes"),
    ("pause", httpx.Response(404, text="no"), "404 .start vLLM with VLLM_SERVER_DEV_MODE=1"),
    ("reset_prefix_cache", httpx.Response(200, json={"success": False}), "could not drop its prefix cache"),
])  # fmt: skip
async def test_failed_server_is_not_resumed(
    servers: Any, tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch, path: str, answer: Any, message: str
) -> None:
    fleet = Fleet(**{path: answer})
    with pytest.raises(WeightSyncError, match=message):
        await sink(servers(fleet), tiny_checkpoint, monkeypatch).push(0, {"w": torch.zeros(1)})
    assert "/resume" not in [path for path, _ in fleet.of("a")]


def test_address_is_on_route_to_server() -> None:
    assert address_towards("http://127.0.0.1:8000/v1") == "127.0.0.1"
