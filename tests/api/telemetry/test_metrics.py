from __future__ import annotations

from pydantic import SecretStr

from service.api.telemetry.metrics import Metrics
from service.engines.base import EngineStats, TokenChunk
from service.episode.events import Observed, Sampled
from service.episode.stop_strings import StopStringHit
from service.sandbox.runner.client import RunnerClient, RunnerClientSettings
from tests.support.fake_sandbox import FakeSandbox


def test_tokens_of_a_stop_string_count_as_sampled() -> None:
    metrics = Metrics()
    metrics.observe(Sampled(TokenChunk((1, 2), "ab", (0.0, 0.0))))
    metrics.observe(StopStringHit((3,)))
    metrics.observe(Observed((4,), "x"))
    text = metrics.render(running=1, waiting=2, engine=EngineStats()).decode()
    assert "ihgrpo_sampled_tokens_total 3.0" in text
    assert "ihgrpo_observation_tokens_total 1.0" in text
    assert "ihgrpo_episodes_running 1.0" in text
    assert "ihgrpo_episodes_waiting 2.0" in text


def test_cached_tokens_are_counted_once() -> None:
    metrics = Metrics()
    for cached in (5, 9):
        text = metrics.render(running=0, waiting=0, engine=EngineStats(cached_tokens=cached)).decode()
        assert f"ihgrpo_cached_prompt_tokens_total {cached}.0" in text


def test_each_runner_has_its_own_series() -> None:
    metrics = Metrics()
    metrics.watch(FakeSandbox())  # without runners
    client = RunnerClient(RunnerClientSettings(("a:1", "wss://b:2"), SecretStr("t" * 32)))
    metrics.watch(client)
    broken, busy = client._balancer.hosts
    broken.failed("no answer", now=0.0)
    busy.opening()
    busy.answered()
    text = metrics.render(running=0, waiting=0, engine=EngineStats()).decode()
    assert 'ihgrpo_runner_client_up{runner="a:1"} 0.0' in text
    assert 'ihgrpo_runner_client_up{runner="wss://b:2"} 1.0' in text
    assert 'ihgrpo_runner_client_sessions{runner="wss://b:2"} 1.0' in text
    assert 'ihgrpo_runner_client_opened_total{runner="wss://b:2"} 1.0' in text
    assert 'ihgrpo_runner_client_failures_total{runner="a:1"} 1.0' in text
    assert text.count("ihgrpo_runner_client_load{") == 2
