"""Two servers that share a Postgres database."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.responses_api import CODE_TOOL, ask, engine, serving
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.until import until


async def test_response_is_visible_and_cancellable_from_another_server(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.responses.registry._BEAT_S", 0.05)
    scripted = ScriptedEngine("x" * 9000 + EOS, delay_s=0.005)
    async with (
        serving(scripted, store_url=postgres_url) as here,
        serving(engine(), store_url=postgres_url) as there,
    ):
        running = await ask(here, background=True)
        events: list[Any] = []
        async for event in await there.openai.responses.retrieve(running.id, stream=True):
            events.append(event.to_dict())
            if len(events) == 10:
                await there.openai.responses.cancel(running.id)
        await until(lambda: not scripted.open_streams)
        done = await ask(there, tools=CODE_TOOL)
        again = await ask(there, "Thanks.", previous_response_id=done.id)
        assert (await here.openai.responses.retrieve(again.id)).previous_response_id == done.id
    assert events[-1]["response"]["status"] == "cancelled"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
