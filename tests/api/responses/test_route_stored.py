"""Stored responses: retrieve, delete, cancel, input items, and whose they are."""

from __future__ import annotations

import hashlib
from typing import Any

import openai
import pytest

from tests.support.response_events import checked, collected
from tests.support.responses_api import CODE_TOOL, ask, engine, serving
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import Served

QUESTIONS: Any = [{"role": "user", "content": f"question {number}"} for number in range(25)]


def hello() -> ScriptedEngine:
    return ScriptedEngine("Hello." + EOS)


async def test_retrieves_a_stored_response() -> None:
    async with serving(engine()) as served:
        final = checked(await collected(await ask(served, tools=CODE_TOOL, stream=True)))
        plain = await ask(served, "Hi")
        for response in (final, plain.to_dict()):
            assert (await served.openai.responses.retrieve(response["id"])).to_dict() == response


async def test_unstored_response_is_not_found() -> None:
    async with serving(hello()) as served:
        response = await ask(served, store=False)
        assert response.store is False
        with pytest.raises(openai.NotFoundError):
            await served.openai.responses.retrieve(response.id)


async def test_deleted_response_is_not_found() -> None:
    async with serving(hello()) as served:
        response = await ask(served)
        await served.openai.responses.delete(response.id)
        await assert_not_found(served, response.id)


async def assert_not_found(served: Served, response_id: str) -> None:
    resource = served.openai.responses
    calls: list[Any] = [
        lambda: resource.retrieve(response_id),
        lambda: resource.retrieve(response_id, stream=True),
        lambda: resource.cancel(response_id),
        lambda: resource.delete(response_id),
        lambda: resource.input_items.list(response_id),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError) as caught:
            await call()
        assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("unknown", [f"resp_{7:032x}", "resp_unknown", "\0", "é", "x" * 5000])
async def test_unknown_id_is_404_on_every_route(unknown: str) -> None:
    async with serving(hello()) as served:
        await assert_not_found(served, unknown)


async def test_input_items_are_paged() -> None:
    async with serving(hello()) as served:
        response = await ask(served, QUESTIONS)
        listing = served.openai.responses.input_items
        page = await listing.list(response.id)
        assert len(page.data) == 20
        assert page.has_more
        assert page.data[0].content[0].text == "question 24"  # type: ignore[union-attr]
        everything = [item async for item in listing.list(response.id, limit=7, order="asc")]
        assert [item.content[0].text for item in everything] == [q["content"] for q in QUESTIONS]  # type: ignore[union-attr]
        assert len({item.id for item in everything}) == 25
        rest = await listing.list(response.id, after=everything[1].id or "")
        assert [item.content[0].text for item in rest.data] == ["question 0"]  # type: ignore[union-attr]
        assert not rest.has_more
        bad: list[dict[str, Any]] = [{"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_1"}]
        for options in bad:
            with pytest.raises(openai.BadRequestError) as caught:
                await listing.list(response.id, **options)
            assert caught.value.param == next(iter(options))


async def test_only_background_responses_are_streamed_again_or_cancelled() -> None:
    async with serving(hello()) as served:
        response = await ask(served)
        with pytest.raises(openai.BadRequestError, match="background=true") as caught:
            await served.openai.responses.retrieve(response.id, stream=True)
        assert caught.value.param == "stream"
        with pytest.raises(openai.BadRequestError, match="background=true"):
            await served.openai.responses.cancel(response.id)


async def test_responses_of_another_key_are_not_visible() -> None:
    keys = [f"sk-{name}" * 10 for name in ("one", "two")]
    hashes = ",".join("sha256:" + hashlib.sha256(key.encode()).hexdigest() for key in keys)
    scripted = ScriptedEngine("Hello." + EOS)
    async with serving(scripted, key=keys[0], api_keys=hashes) as served:
        mine = await ask(served)
        running = await ask(served, background=True)
        other = served.openai.with_options(api_key=keys[1])
        theirs = Served(served.url, other, served.app)
        for response_id in (mine.id, running.id):
            await assert_not_found(theirs, response_id)
        with pytest.raises(openai.NotFoundError):
            await ask(theirs, previous_response_id=mine.id)
        with pytest.raises(openai.NotFoundError):
            await ask(theirs, [{"type": "item_reference", "id": mine.output[0].id}])
        assert (await served.openai.responses.retrieve(mine.id)).id == mine.id
