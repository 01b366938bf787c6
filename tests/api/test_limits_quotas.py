"""Quotas per key: what counts, and what a request gets whose quota is used up."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import httpx
import openai
import pytest
from sqlalchemy.exc import OperationalError

from service.api.usage import KeyUsagePage
from service.store.usage import DAY_S, Consumption
from tests.support.responses_api import ANSWER, CODE_TOOL, FIRST, MARKER
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, make_app, serve
from tests.support.until import until

MESSAGES: Any = [{"role": "user", "content": "?"}]


def sandbox() -> ScriptedSandbox:
    return ScriptedSandbox(lambda blocks: printed("1\n"))


def app_with(
    *texts: str, keys: str = "sk-one,sk-two", delay_s: float = 0.0, box: Any = None, **more: Any
) -> Any:
    engine = ScriptedEngine(*(texts or ("word " * 5 + EOS,)), delay_s=delay_s)
    return make_app(engine, box or sandbox(), api_keys=keys, **more)


async def chat(served: Served, **more: Any) -> Any:
    return await served.openai.chat.completions.create(
        model="scripted", messages=MESSAGES, extra_body={"deferral": {"enabled": False}}, **more
    )


async def counted(app: Any) -> Consumption:
    """Use of the first key today, once there is some."""
    quotas = app.state.server.quotas
    async with asyncio.timeout(30):
        while True:
            used: Consumption = (await quotas.usage.current(next(iter(quotas.names))))[0]
            if used.requests:
                return used
            await asyncio.sleep(0.01)


async def usage(served: Served, key: str = "sk-one", path: str = "/v1/usage", **params: Any) -> Any:
    async with httpx.AsyncClient(base_url=served.url) as client:
        reply = await client.get(path, params=params, headers={"x-api-key": key})
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_token_quota_rejects_before_work_and_is_reported() -> None:
    app = app_with(keys="sk-one tokens_per_day=20 name=a,sk-two")
    async with serve(app, key="sk-one") as served:
        used = (await chat(served)).usage.total_tokens
        while used < 20:
            used += (await chat(served)).usage.total_tokens
        with pytest.raises(openai.RateLimitError) as caught:
            await chat(served)
        error = caught.value
        assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
        assert "20 tokens per day" in error.message
        assert error.response.headers["x-should-retry"] == "false"
        assert 0 < int(error.response.headers["retry-after"]) <= DAY_S
        page = await usage(served)
        [amounts] = page["data"][-1]["results"]
        assert amounts["input_tokens"] + amounts["output_tokens"] == used
        [quota] = page["quotas"]
        assert (quota["name"], quota["limit"], quota["used"]) == ("tokens_per_day", 20, used)
        # The other key has its own count, and lists are free.
        await chat(Served(served.url, served.openai.with_options(api_key="sk-two"), app))
        assert (await served.openai.models.list()).data
        text = app.state.server.metrics.registry.get_sample_value(
            "ihgrpo_refused_total", {"limit": "key_quota"}
        )
        assert text == 1.0


@pytest.mark.parametrize("api", ["responses", "messages", "completions", "background"])
async def test_every_api_counts_and_rejects(api: str) -> None:
    app = app_with(key_tokens_per_month=5)
    async with serve(app, key="sk-one") as served:
        client = anthropic.AsyncAnthropic(base_url=served.url, api_key="sk-one", max_retries=2)

        async def call() -> None:
            match api:
                case "messages":
                    await client.messages.create(model="scripted", messages=MESSAGES, max_tokens=50)
                case "completions":
                    await served.openai.completions.create(model="scripted", prompt="abc")
                case _:
                    await served.openai.responses.create(
                        model="scripted", input="?", background=api == "background"
                    )

        await call()
        used = await counted(app)
        with pytest.raises((openai.RateLimitError, anthropic.RateLimitError)) as caught:
            await call()
        assert "insufficient_quota" in str(caught.value.body)
        assert (used.requests, await counted(app)) == (1, used)
        await client.close()


async def test_abandoned_stream_is_counted() -> None:
    app = app_with("x" * 10_000, delay_s=0.002)
    async with serve(app, key="sk-one") as served:
        stream = await chat(served, stream=True)
        chunks = aiter(stream)
        for _ in range(20):
            await anext(chunks)
        await stream.response.aclose()
        used = await counted(app)
        assert 15 <= used.output_tokens < 10_000
        assert used.input_tokens > 0


async def test_seconds_of_code_count_without_a_lasting_container() -> None:
    app = app_with(FIRST + MARKER, ANSWER + EOS, keys="sk-one sandbox_seconds_per_day=0,sk-two")
    async with serve(app, key="sk-two") as served:
        await served.openai.chat.completions.create(model="scripted", messages=MESSAGES)
        [amounts] = (await usage(served, "sk-two"))["data"][-1]["results"]
        assert amounts["sandbox_seconds"] == 0.2
        one = served.openai.with_options(api_key="sk-one")
        with pytest.raises(openai.RateLimitError, match="0 sandbox seconds per day"):
            await one.chat.completions.create(model="scripted", messages=MESSAGES)
        with pytest.raises(openai.RateLimitError):
            await one.responses.create(model="scripted", input="?", tools=CODE_TOOL)
        await chat(Served(served.url, one, app))  # no code


async def test_interrupted_code_counts_until_the_client_leaves() -> None:
    box = ScriptedSandbox(lambda blocks: printed("1\n"), delay_s=300.0)
    async with serve(app_with(FIRST + MARKER, ANSWER + EOS, box=box), key="sk-one") as served:
        stream = await served.openai.chat.completions.create(model="scripted", messages=MESSAGES, stream=True)
        async for chunk in stream:
            if getattr(chunk.choices[0].delta, "tool_status", None) or MARKER in str(chunk):
                break
        await asyncio.sleep(0.1)
        await stream.response.aclose()
        assert 0 < (await counted(served.app)).sandbox_seconds < 300


async def test_storage_quota_rejects_uploads_and_stored_responses(tmp_path: Any) -> None:
    app = app_with(keys="sk-one stored_bytes=3000", files_url=str(tmp_path))
    async with serve(app, key="sk-one") as served:
        with pytest.raises(openai.APIStatusError) as caught:
            await served.openai.files.create(file=("a.bin", bytes(3001)), purpose="user_data")
        assert (caught.value.status_code, caught.value.code) == (413, "storage_limit_exceeded")
        file = await served.openai.files.create(file=("a.bin", bytes(3000)), purpose="user_data")
        with pytest.raises(openai.RateLimitError, match="3000 stored bytes"):
            await served.openai.files.create(file=("b.bin", b"b"), purpose="user_data")
        with pytest.raises(openai.RateLimitError):
            await served.openai.responses.create(model="scripted", input="?")
        await served.openai.responses.create(model="scripted", input="?", store=False)
        assert (await usage(served))["stored_bytes"] == 3000
        await served.openai.files.delete(file.id)
        await served.openai.responses.create(model="scripted", input="?")


async def test_usage_has_pages_of_buckets_and_groups() -> None:
    keys = "sk-one name=a,sk-two name=ops scope=admin"
    async with serve(app_with(keys=keys), key="sk-one") as served:
        await chat(served)
        now = int(served.app.state.server.quotas.usage.clock())
        first = await usage(served, start_time=now - 9 * DAY_S)
        assert set(KeyUsagePage.model_validate(first).model_dump()) == set(first)
        assert (first["object"], len(first["data"]), first["has_more"]) == ("page", 7, True)
        second = await usage(served, start_time=now - 9 * DAY_S, page=first["next_page"], limit=31)
        assert second["data"][0]["start_time"] == first["data"][-1]["end_time"]
        assert (second["has_more"], second["next_page"]) == (False, None)
        assert [len(bucket["results"]) for bucket in second["data"]] == [0, 0, 1]
        assert len((await usage(served, bucket_width="1h"))["data"]) == 24
        grouped = await usage(
            served, "sk-two", "/admin/usage", limit=1, **{"group_by[]": ["api_key_id", "model"]}
        )
        [amounts] = grouped["data"][-1]["results"]
        assert (amounts["model"], amounts["api_key_name"]) == ("scripted", "a")
        assert (await usage(served, "sk-two", "/admin/usage", api_key_ids=amounts["api_key_id"], limit=1))[
            "data"
        ][-1]["results"]
        assert not (await usage(served, "sk-two", limit=1))["data"][-1]["results"]


@pytest.mark.parametrize(
    ("path", "params", "status"),
    [
        ("/v1/usage", {"start_time": 2**40}, 400),
        ("/v1/usage", {"start_time": 9, "end_time": 9}, 400),
        ("/v1/usage", {"limit": 32}, 400),
        ("/v1/usage", {"bucket_width": "1m"}, 400),
        ("/v1/usage", {"group_by": "user_id"}, 400),
        ("/v1/usage", {"api_key_ids": "sha256:00"}, 403),
        ("/admin/usage", {}, 403),
    ],
)
async def test_rejects_invalid_and_foreign_queries(path: str, params: dict[str, Any], status: int) -> None:
    async with (
        serve(app_with(), key="sk-one") as served,
        httpx.AsyncClient(base_url=served.url, headers={"x-api-key": "sk-one"}) as client,
    ):
        reply = await client.get(path, params=params)
        assert reply.status_code == status, reply.text


async def test_unreadable_counts_reject_keys_with_a_quota_only(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_with(keys="sk-one tokens_per_day=9,sk-two")

    async def fails(*_: object) -> Any:
        raise OperationalError("SELECT", {}, Exception("no disk"))

    async with serve(app, key="sk-one") as served:
        monkeypatch.setattr(app.state.server.quotas.usage, "current", fails)
        monkeypatch.setattr(app.state.server.quotas.usage, "add", fails)
        with pytest.raises(openai.InternalServerError) as caught:
            await chat(served)
        assert (caught.value.status_code, caught.value.code) == (503, "usage_unavailable")
        assert (await chat(Served(served.url, served.openai.with_options(api_key="sk-two"), app))).choices


async def test_counts_are_stored_before_the_store_is_closed() -> None:
    async with serve(app_with()) as served:
        quotas, stored = served.app.state.server.quotas, asyncio.Event()
        add = quotas.usage.add

        async def slow(*args: Any) -> None:
            await asyncio.sleep(0.05)
            await add(*args)
            stored.set()

        quotas.usage.add = slow
        recording = asyncio.create_task(quotas.record("me", "m", Consumption(1)))
        await until(lambda: bool(quotas._recording))
        recording.cancel()
    assert stored.is_set()
