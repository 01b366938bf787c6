from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import isnan
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.engines.base import (
    ContextLengthExceededError,
    Engine,
    EngineError,
    InvalidRequestError,
    PromptLogprob,
    Sampling,
    TokenChunk,
    TopLogprob,
    unsupported,
)
from service.engines.remote.engine import RemoteEngine
from service.engines.settings import RemoteSettings
from service.engines.tokenizer import HFTokenizer
from tests.support.fake_vllm import FakeVLLM, served

SHORT = Sampling(max_tokens=8)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> HFTokenizer:
    return HFTokenizer(str(tiny_checkpoint))


@asynccontextmanager
async def engine_on(checkpoint: Path, *fakes: FakeVLLM, **options: object) -> AsyncIterator[RemoteEngine]:
    """Start an engine on running fake servers, and stop it afterwards."""
    engine = RemoteEngine(
        RemoteSettings(urls=tuple(fake.url for fake in fakes), model=str(checkpoint), **options)  # type: ignore[arg-type]
    )
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


async def collect(engine: Engine, ids: list[int], sampling: Sampling = SHORT) -> list[TokenChunk]:
    return [chunk async for chunk in engine.generate(ids, sampling, engine.eos_token_ids)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def test_prompt_logprobs_come_with_the_first_token(
    tiny_checkpoint: Path, tokenizer: HFTokenizer
) -> None:
    fake = FakeVLLM(tokenizer, "one two")
    sampling = Sampling(max_tokens=8, prompt_logprobs=1, json_schema="{}")
    async with served(fake), engine_on(tiny_checkpoint, fake) as engine:
        first, *others = await collect(engine, [7, 8, 9], sampling)
    assert first.prompt_logprobs == (PromptLogprob(-1.5, (TopLogprob(1, -0.5),)),) * 2
    assert not any(chunk.prompt_logprobs for chunk in others)
    scoring, generating = fake.bodies
    assert (scoring["max_tokens"], scoring["prompt_logprobs"], "stream" in scoring) == (1, 1, False)
    assert scoring["structured_outputs"] is None
    assert (generating["max_tokens"], "prompt_logprobs" in generating) == (8, False)


async def test_tokens_text_logprobs_and_counters(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    fake = FakeVLLM(tokenizer, "x = 42 é<|im_end|>never said")
    async with served(fake), engine_on(tiny_checkpoint, fake) as engine:
        chunks = await collect(engine, [1, 2, 3, 4, 5], Sampling(seed=3, max_tokens=50, top_logprobs=2))
        ids = [token_id for chunk in chunks for token_id in chunk.ids]
        assert ids == tokenizer.encode("x = 42 é<|im_end|>", allow_special=True)
        assert "".join(chunk.text for chunk in chunks) == "x = 42 é<|im_end|>"
        assert all(chunk.logprobs == (-0.5,) for chunk in chunks)
        assert chunks[0].top_logprobs == ((TopLogprob(1, -0.25), TopLogprob(ids[0], -0.5)),)
        assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
        assert [chunk.cached_tokens for chunk in chunks] == [None] * (len(chunks) - 1) + [4]
        stats = engine.stats()
        assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (5, 4, len(ids))
        assert stats.running == stats.waiting == 0
    (body,) = fake.bodies
    assert body["prompt"] == [1, 2, 3, 4, 5]
    assert body["stop_token_ids"] == sorted(engine.eos_token_ids)
    assert (body["seed"], body["logprobs"], body["max_tokens"], body["model"]) == (3, 2, 50, "base")


async def test_logprobs_are_nan_if_not_requested(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    fake = FakeVLLM(tokenizer)
    async with served(fake), engine_on(tiny_checkpoint, fake) as engine:
        chunks = await collect(engine, [1], Sampling(logprobs=False))
    assert "logprobs" not in fake.bodies[0]
    assert all(isnan(logprob) for chunk in chunks for logprob in chunk.logprobs)
    assert all(len(chunk.logprobs) == len(chunk.ids) for chunk in chunks)


async def test_context_limit_and_adapters_come_from_the_servers(
    tiny_checkpoint: Path, tokenizer: HFTokenizer
) -> None:
    one, two = FakeVLLM(tokenizer), FakeVLLM(tokenizer)
    one.adapters, two.adapters = ["poet", "chemist"], ["chemist"]
    async with served(one, two), engine_on(tiny_checkpoint, one, two) as engine:
        assert engine.context_length == 300
        assert engine.adapters == ("chemist",)
        await collect(engine, [1], Sampling(adapter="chemist"))
        with pytest.raises(EngineError, match=r"adapter 'poet' is unknown; .*: chemist"):
            await collect(engine, [1], Sampling(adapter="poet"))
        with pytest.raises(ContextLengthExceededError):
            await collect(engine, [1] * 300)
        await collect(engine, [1] * 299)
    bodies = [*one.bodies, *two.bodies]
    assert sorted((body["model"], len(body["prompt"]), body["max_tokens"]) for body in bodies) == [
        ("base", 299, 1),
        ("chemist", 1, 299),
    ]


async def test_least_busy_server_and_episode_affinity(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    fakes = [FakeVLLM(tokenizer, "a b c d e f g h i j k l m n o p q r s t u v w x y z") for _ in range(2)]
    async with served(*fakes), engine_on(tiny_checkpoint, *fakes) as engine:
        for fake in fakes:
            fake.hold.clear()
        tasks = [asyncio.create_task(collect(engine, [n], Sampling(max_tokens=40))) for n in range(6)]
        await until(lambda: sum(fake.open_streams for fake in fakes) == 6)
        assert [fake.open_streams for fake in fakes] == [3, 3]
        assert (engine.stats().waiting, engine.stats().running) == (6, 0)
        for fake in fakes:
            fake.hold.set()
        replies = await asyncio.gather(*tasks)
        for n, chunks in enumerate(replies):
            ids = [n, *(token_id for chunk in chunks for token_id in chunk.ids)]
            before = [len(fake.bodies) for fake in fakes]
            await collect(engine, [*ids, 7, 8, 9])
            (home,) = [i for i, fake in enumerate(fakes) if len(fake.bodies) > before[i]]
            assert [n] in [body["prompt"] for body in fakes[home].bodies]


@pytest.mark.parametrize("failure", ["refuse", "break_after"])
async def test_retries_on_another_server_before_the_first_token(
    tiny_checkpoint: Path, tokenizer: HFTokenizer, failure: str
) -> None:
    bad, good = FakeVLLM(tokenizer), FakeVLLM(tokenizer)
    setattr(bad, failure, 503 if failure == "refuse" else 0)
    async with served(bad, good), engine_on(tiny_checkpoint, bad, good) as engine:
        for _ in range(4):
            assert (await collect(engine, [1]))[-1].finish_reason == "length"
    assert len(good.bodies) == 4
    assert bad.bodies


async def test_does_not_retry_after_the_first_token(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    one, two = FakeVLLM(tokenizer, "a b c d e f"), FakeVLLM(tokenizer, "a b c d e f")
    one.break_after = two.break_after = 2
    async with served(one, two), engine_on(tiny_checkpoint, one, two) as engine:
        stream = engine.generate([1], SHORT)
        for _ in range(2):
            await anext(stream)
        with pytest.raises(EngineError, match=r"http://127\.0\.0\.1:\d+: the stream ended before"):
            await anext(stream)
    assert len(one.bodies) + len(two.bodies) == 1


async def test_attempts_are_limited(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    fake = FakeVLLM(tokenizer)
    fake.refuse = 500
    async with served(fake), engine_on(tiny_checkpoint, fake, attempts=2) as engine:
        with pytest.raises(EngineError, match="answered 500: refused by the test"):
            await collect(engine, [1])
    assert len(fake.bodies) == 2


async def test_invalid_request_is_not_retried(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    one, two = FakeVLLM(tokenizer), FakeVLLM(tokenizer)
    one.refuse = two.refuse = 400
    async with served(one, two), engine_on(tiny_checkpoint, one, two) as engine:
        with pytest.raises(InvalidRequestError, match=r"^vLLM: refused by the test"):
            await collect(engine, [1])
        assert engine.healthy
    assert len(one.bodies) + len(two.bodies) == 1


async def test_error_event_fails_the_call(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    fake = FakeVLLM(tokenizer)
    fake.error_after = 1
    async with served(fake), engine_on(tiny_checkpoint, fake) as engine:
        with pytest.raises(EngineError, match="error from the test"):
            await collect(engine, [1])


async def test_closing_aborts_the_call_on_the_server(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    fake = FakeVLLM(tokenizer, "a b c d e f g h")
    async with served(fake), engine_on(tiny_checkpoint, fake) as engine:
        stream = engine.generate([1], Sampling())
        await anext(stream)
        fake.hold.clear()
        await stream.aclose()
        await until(lambda: fake.open_streams == 0)
        assert engine.stats().running == 0


async def test_health_follows_the_servers(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    one, two = FakeVLLM(tokenizer), FakeVLLM(tokenizer)
    async with served(one, two), engine_on(tiny_checkpoint, one, two, health_interval_s=0.01) as engine:
        assert engine.healthy
        one.healthy = False
        await until(lambda: not engine._servers[0].is_up)
        for _ in range(3):
            await collect(engine, [1])
        assert not one.bodies
        assert engine.healthy
        two.healthy = False
        await until(lambda: not engine.healthy)
        one.healthy = True
        await until(lambda: engine.healthy)


async def test_server_down_at_start_is_added_when_it_serves_the_model(
    tiny_checkpoint: Path, tokenizer: HFTokenizer
) -> None:
    here, late = FakeVLLM(tokenizer), FakeVLLM(tokenizer, model="another")
    late.refuse_all = 503
    options = {"health_interval_s": 0.01}
    async with served(here, late), engine_on(tiny_checkpoint, here, late, **options) as engine:
        assert (engine._servers[0].is_up, engine._servers[1].is_up) == (True, False)
        with capture_logs() as logs:
            late.refuse_all = None
            await until(lambda: any(line["event"] == "engine_server_refused" for line in logs))
        assert not engine._servers[1].is_up
        late.model = "base"
        await until(lambda: engine._servers[1].is_up)


async def test_rejects_servers_with_different_models(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    one, two = FakeVLLM(tokenizer), FakeVLLM(tokenizer, model="another")
    async with served(one, two):
        with pytest.raises(EngineError, match="serve different models: another, base"):
            async with engine_on(tiny_checkpoint, one, two):
                pass


async def test_fails_if_no_server_answers(tiny_checkpoint: Path) -> None:
    engine = RemoteEngine(RemoteSettings(urls=("http://127.0.0.1:9",), model=str(tiny_checkpoint)))
    with pytest.raises(EngineError, match=r"no vLLM server answers: http://127\.0\.0\.1:9: ConnectError"):
        await engine.start()
    assert not engine.healthy
    await engine.stop()


async def test_sends_the_api_key_and_reports_a_wrong_one(
    tiny_checkpoint: Path, tokenizer: HFTokenizer
) -> None:
    fake = FakeVLLM(tokenizer)
    fake.key = "secret"
    async with served(fake):
        async with engine_on(tiny_checkpoint, fake, api_key="secret") as engine:
            await collect(engine, [1])
        with pytest.raises(EngineError, match=r"answered 401.*engine_api_key"):
            async with engine_on(tiny_checkpoint, fake):
                pass


async def test_rejects_a_server_with_another_tokenizer(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    fake = FakeVLLM(tokenizer)
    async with served(fake):
        fake.tokenizer = _Other()  # type: ignore[assignment]
        with pytest.raises(EngineError, match="whose tokenizer differs from that of"):
            async with engine_on(tiny_checkpoint, fake):
                pass


class _Other:
    def encode(self, text: str, *, allow_special: bool) -> list[int]:
        return [1, 2, 3]


async def test_rejects_logprobs_at_another_temperature(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    fake = FakeVLLM(tokenizer)
    async with served(fake), engine_on(tiny_checkpoint, fake) as engine:
        assert unsupported(engine, Sampling(temperature=0.6)) == ["logprobs"]
        assert unsupported(engine, Sampling(temperature=0.6, logprobs=False)) == []
        with pytest.raises(EngineError, match="does not support logprobs"):
            await collect(engine, [1], Sampling(temperature=0.6))


async def test_must_be_started_exactly_once(tiny_checkpoint: Path, tokenizer: HFTokenizer) -> None:
    fake = FakeVLLM(tokenizer)
    async with served(fake), engine_on(tiny_checkpoint, fake) as engine:
        with pytest.raises(EngineError, match="already started"):
            await engine.start()
    fresh = RemoteEngine(RemoteSettings(urls=("http://127.0.0.1:9",), model=str(tiny_checkpoint)))
    with pytest.raises(EngineError, match="not started"):
        await collect(fresh, [1])
    await fresh.stop()
