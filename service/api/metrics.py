"""Prometheus metrics: what was asked, what was written, and what deferral hid."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.events import EpisodeEvent, ExecutedTool, Finished, FlushFinished, Invoked, Observed, Sampled


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "ihgrpo_requests", "HTTP requests, by route and status.", ["route", "status"], registry=registry
        )
        self.prompt_tokens = Counter("ihgrpo_prompt_tokens", "Prompt tokens.", registry=registry)
        self.first_token_s = Histogram(
            "ihgrpo_first_token_seconds",
            "From a request's arrival to its first token, in seconds.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self.running = Gauge("ihgrpo_episodes_running", "Episodes that run.", registry=registry)
        self.waiting = Gauge("ihgrpo_episodes_waiting", "Episodes in the admission queue.", registry=registry)
        self._sampled = Counter("ihgrpo_sampled_tokens", "Tokens that the model wrote.", registry=registry)
        self._observed = Counter("ihgrpo_observation_tokens", "Observation tokens.", registry=registry)
        self._episodes = Counter("ihgrpo_episodes", "Episodes, by outcome.", ["outcome"], registry=registry)
        self._invoked = Counter("ihgrpo_tool_invoked", "Blocks that became pending.", registry=registry)
        self._executed = Counter(
            "ihgrpo_tool_executed", "Blocks that were executed, by status.", ["status"], registry=registry
        )
        self._delayed = Counter(
            "ihgrpo_tool_delayed", "Executed blocks that were delayed.", registry=registry
        )
        self._flushes = Counter("ihgrpo_tool_flushes", "Flushes, by status.", ["status"], registry=registry)
        self._waited = Counter(
            "ihgrpo_tool_waited_seconds", "Seconds that the model waited for code.", registry=registry
        )
        self._hidden = Counter(
            "ihgrpo_tool_hidden_seconds",
            "Seconds of code hidden behind the model's writing.",
            registry=registry,
        )

    def observe(self, event: EpisodeEvent) -> None:
        """Count one event of an episode."""
        match event:
            case Sampled(chunk):
                self._sampled.inc(len(chunk.ids))
            case Observed(ids):
                self._observed.inc(len(ids))
            case Invoked():
                self._invoked.inc()
            case FlushFinished(tool):
                self._observe_tool(tool)
            case Finished(outcome):
                self._episodes.labels(outcome.value).inc()

    def _observe_tool(self, tool: ExecutedTool) -> None:
        self._flushes.labels(tool.status).inc()
        self._executed.labels(tool.status).inc(len(tool.blocks))
        self._delayed.inc(tool.delayed)
        self._waited.inc(tool.waited_ms / 1000)
        self._hidden.inc(tool.hidden_ms / 1000)

    def render(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)
