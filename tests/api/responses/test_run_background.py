"""Responses that run on when the client is away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import update

from service.store.responses import ResponseStore
from service.store.tables import responses
from tests.support.response_events import checked, collected, kinds
from tests.support.responses_api import ANSWER, CODE_TOOL, FIRST, OUTPUTS, SECOND, ask, engine, serving
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import Served
from tests.support.stored import dead_runner, stored
from tests.support.until import until

CUT = f"resp_{0:032x}"


def endless() -> ScriptedEngine:
    return ScriptedEngine("x" * 9000 + EOS, delay_s=0.005)


async def ended(served: Served, response_id: str, **options: Any) -> Any:
    """The response when it is over."""
    async with asyncio.timeout(60):
        while True:
            response = await served.openai.responses.retrieve(response_id, **options)
            if response.status not in ("queued", "in_progress"):
                return response
            await asyncio.sleep(0.02)


async def test_background_response_is_queued_then_completes() -> None:
    async with serving(engine()) as served:
        queued = await ask(served, tools=CODE_TOOL, background=True)
        done = await ended(served, queued.id, include=OUTPUTS)
        again = await ask(served, "Thanks.", previous_response_id=done.id)
    assert (queued.status, queued.background, queued.output) == ("queued", True, [])
    assert done.status == "completed"
    assert done.output_text == FIRST + SECOND + ANSWER
    assert done.output[1].outputs[0].logs == "42"
    assert again.status == "completed"


async def test_background_response_survives_a_disconnect() -> None:
    scripted = engine(delay_s=0.01)
    async with serving(scripted) as served:
        stream = await ask(served, tools=CODE_TOOL, background=True, stream=True)
        first: list[Any] = []
        async for event in stream:
            first.append(event.to_dict())
            if len(first) == 20:
                break
        await stream.response.aclose()
        response_id = first[0]["response"]["id"]
        live = served.openai.responses.retrieve(response_id, stream=True, starting_after=19)
        rest = await collected(await live)
        whole = await collected(await served.openai.responses.retrieve(response_id, stream=True))
        late = served.openai.responses.retrieve(response_id, stream=True, starting_after=len(whole) - 3)
        assert await collected(await late) == whole[-2:]
        for beyond in (len(whole) - 1, 10**6):
            nothing = served.openai.responses.retrieve(response_id, stream=True, starting_after=beyond)
            assert await collected(await nothing) == []
    assert first + rest == whole
    final = checked(whole)
    assert final["status"] == "completed"
    assert kinds(whole)[:3] == ["created", "queued", "in_progress"]
    assert [event["response"]["status"] for event in whole[:3]] == ["queued", "queued", "in_progress"]


async def test_all_readers_see_the_same_events() -> None:
    async with serving(engine(delay_s=0.005)) as served:
        queued = await ask(served, tools=CODE_TOOL, background=True)
        streams = [await served.openai.responses.retrieve(queued.id, stream=True) for _ in range(2)]
        one, other = await asyncio.gather(*map(collected, streams))
        async with served.openai.responses.stream(response_id=queued.id) as helper:
            final = await helper.get_final_response()
    assert one == other
    assert final.output_text == checked(one)["output"][0]["content"][0]["text"] + ANSWER


async def test_cancel_keeps_partial_output_and_can_be_repeated() -> None:
    scripted = endless()
    async with serving(scripted) as served:
        stream = await ask(served, background=True, stream=True)
        events: list[Any] = []
        async for event in stream:
            events.append(event.to_dict())
            if len(events) == 10:
                cancelled = await served.openai.responses.cancel(events[0]["response"]["id"])
        assert cancelled.status == "cancelled"
        assert not scripted.open_streams
        await until(lambda: served.app.state.server.admission.running == 0)
        assert (await served.openai.responses.cancel(cancelled.id)).to_dict() == cancelled.to_dict()
        assert (await served.openai.responses.retrieve(cancelled.id)).to_dict() == cancelled.to_dict()
    final = checked(events)
    assert final["status"] == "cancelled"
    assert final["output"][0]["status"] == "incomplete"
    assert cancelled.output_text.startswith("xxx")
    assert cancelled.usage.output_tokens == len(cancelled.output_text)


async def test_continuing_a_response_that_has_not_ended_is_a_conflict() -> None:
    async with serving(endless()) as served:
        running = await ask(served, background=True)
        with pytest.raises(openai.ConflictError, match="has not ended: its status is") as caught:
            await ask(served, "And now?", previous_response_id=running.id)
        await served.openai.responses.cancel(running.id)
    assert caught.value.code == "previous_response_not_ended"
    assert caught.value.param == "previous_response_id"


async def test_cancel_does_not_change_an_ended_response() -> None:
    async with serving(ScriptedEngine("Hello." + EOS)) as served:
        queued = await ask(served, background=True)
        done = await ended(served, queued.id)
        assert (await served.openai.responses.cancel(queued.id)).to_dict() == done.to_dict()


async def test_delete_ends_a_running_response() -> None:
    scripted = endless()
    async with serving(scripted) as served:
        queued = await ask(served, background=True)
        await until(lambda: scripted.open_streams)
        await served.openai.responses.delete(queued.id)
        assert not scripted.open_streams
        with pytest.raises(openai.NotFoundError):
            await served.openai.responses.retrieve(queued.id)


async def test_queued_response_can_be_cancelled() -> None:
    scripted = endless()
    options = {"max_concurrent_episodes": 1, "max_queued_episodes": 0, "queue_timeout_s": 0.05}
    async with serving(scripted, **options) as served:
        first = await ask(served, background=True)
        await until(lambda: scripted.open_streams)
        second = await ask(served, background=True)
        await asyncio.sleep(0.3)  # longer than the queue's patience: a promise is kept
        assert (await served.openai.responses.retrieve(second.id)).status == "queued"
        third = await ask(served, background=True)
        assert (await served.openai.responses.cancel(third.id)).status == "cancelled"
        await served.openai.responses.cancel(first.id)
        await until(lambda: scripted.open_streams)
        assert (await served.openai.responses.retrieve(second.id)).status == "in_progress"
        await served.openai.responses.cancel(second.id)


async def test_number_of_background_responses_is_limited() -> None:
    async with serving(endless(), max_background_responses=1) as served:
        first = await ask(served, background=True)
        with pytest.raises(openai.RateLimitError):
            await ask(served, background=True)
        assert served.app.state.server.drain.active == 1
        await served.openai.responses.cancel(first.id)
        assert served.app.state.server.drain.active == 0
        await served.openai.responses.cancel((await ask(served, background=True)).id)


async def test_shutdown_fails_running_responses(tmp_path: Path) -> None:
    store_url = f"sqlite:///{tmp_path / 'responses.db'}"
    scripted = endless()
    async with serving(scripted, store_url=store_url) as served:
        running = await ask(served, background=True)
        await until(lambda: scripted.open_streams)
    async with serving(endless(), store_url=store_url) as served:
        response = await served.openai.responses.retrieve(running.id)
        events = await collected(await served.openai.responses.retrieve(running.id, stream=True))
    assert (response.status, response.error.code) == ("failed", "server_error")  # type: ignore[union-attr]
    assert "server stopped" in response.error.message  # type: ignore[union-attr]
    assert checked(events)["status"] == "failed"


async def test_crashed_run_is_failed_at_the_next_start(tmp_path: Path) -> None:
    store_url = f"sqlite:///{tmp_path / 'responses.db'}"
    async with serving(ScriptedEngine("Hello." + EOS), store_url=store_url) as served:
        body = (await ask(served, background=True, stream=False)).to_dict()
        await ended(served, body["id"])
    store = ResponseStore(store_url)
    await store.start()
    cut = {**body, "id": CUT, "status": "in_progress"}
    await store.put(
        stored(CUT, owner="", status="in_progress", background=True, body=cut, expires_at=9_999_999_999.0)
    )
    await store.add_events(CUT, [{"type": "response.created", "sequence_number": 0, "response": cut}])
    async with store.engine.begin() as connection:
        await connection.execute(update(responses).where(responses.c.id == CUT).values(runner=dead_runner()))
    await store.stop()
    async with serving(ScriptedEngine("Hello." + EOS), store_url=store_url) as served:
        response = await served.openai.responses.retrieve(CUT)
        events = await collected(await served.openai.responses.retrieve(CUT, stream=True))
    assert response.status == "failed"
    assert [event["type"] for event in events] == ["response.created", "response.failed"]
    assert events[-1]["sequence_number"] == 1


async def test_another_server_of_the_store_reads_and_cancels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.responses.registry._BEAT_S", 0.05)
    store_url = f"sqlite:///{tmp_path / 'responses.db'}"
    scripted = endless()
    async with (
        serving(scripted, store_url=store_url) as here,
        serving(endless(), store_url=store_url) as there,
    ):
        running = await ask(here, background=True)
        stream = await there.openai.responses.retrieve(running.id, stream=True)
        events: list[Any] = []
        async for event in stream:
            events.append(event.to_dict())
            if len(events) == 10:
                assert (await there.openai.responses.cancel(running.id)).status == "cancelled"
        await until(lambda: not scripted.open_streams)
        assert (await here.openai.responses.retrieve(running.id)).status == "cancelled"
    assert events[-1]["response"]["status"] == "cancelled"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
