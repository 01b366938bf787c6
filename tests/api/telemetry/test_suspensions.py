"""Metrics of suspended episodes, from requests to the text that Prometheus reads."""

from __future__ import annotations

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.api.chat.suspension import Suspensions
from tests.api.chat.test_suspension import ANSWER, ONE, Suspending, outputs, serving


async def scraped(server: Suspending) -> dict[str, float]:
    """Samples of suspended episodes, those of ended ones by reason."""
    async with httpx.AsyncClient(base_url=server.url) as http:
        text = (await http.get("/metrics")).text
    names = ("ihgrpo_episodes_suspended", "ihgrpo_suspensions")
    return {
        sample.labels.get("reason", sample.name): sample.value
        for family in text_string_to_metric_families(text)
        if family.name.startswith(names)
        for sample in family.samples
    }


def ended(**reasons: float) -> dict[str, float]:
    return {"continued": 0, "expired": 0, "cancelled": 0, "limit": 0, "shutdown": 0, **reasons}


async def test_suspended_episodes_and_their_ends_are_counted() -> None:
    async with serving(*[ONE] * 4, ANSWER, suspended_per_key=3) as server:
        gauges = {"ihgrpo_episodes_suspended": 0.0, "ihgrpo_episodes_suspended_bytes": 0.0}
        assert await scraped(server) == {**gauges, **ended()}
        responses = [await server.respond() for _ in range(4)]
        found = await scraped(server)
        assert found["ihgrpo_episodes_suspended"] == 3
        assert found["ihgrpo_episodes_suspended_bytes"] == 3 * 512 * 2**20
        await server.respond(outputs(responses[1]), previous_response_id=responses[1].id)
        await server.client.responses.cancel(responses[2].id)
        server.kept._clock = lambda: 1e12
        await server.kept.sweep()
        assert await scraped(server) == {
            **gauges,
            **ended(limit=1, continued=1, cancelled=1, expired=1),
        }


async def test_request_that_could_not_continue_counts_as_no_end() -> None:
    options = {"max_concurrent_episodes": 1, "max_queued_episodes": 0}
    async with serving(ONE, ANSWER, **options) as server:
        first = await server.respond()
        async with server.app.state.server.admission.admit(1):
            with pytest.raises(openai.RateLimitError):
                await server.respond(outputs(first), previous_response_id=first.id)
        found = await scraped(server)
        assert (found["ihgrpo_episodes_suspended"], found["continued"]) == (1, 0)
        await server.respond(outputs(first), previous_response_id=first.id)
        found = await scraped(server)
        assert (found["ihgrpo_episodes_suspended"], found["continued"]) == (0, 1)


async def test_shutdown_is_counted() -> None:
    async with serving(ONE, ANSWER) as server:
        await server.respond()
        kept: Suspensions = server.kept
    assert (kept.counts().suspended, kept.counts().ended["shutdown"]) == (0, 1)
