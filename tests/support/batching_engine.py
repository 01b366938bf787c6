"""Behaviour that every engine with its own batching has. A test module imports everything from here:

    from tests.support.batching_engine import *  # noqa: F403

and defines the fixtures ``create``, a function from fields of the engine's settings to an engine of the tiny
checkpoint, ``runner_class``, the class whose ``forward`` runs the model, and ``reference``.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from structlog.testing import capture_logs

from service.engines.base import ContextLengthExceededError, Engine, EngineError, Sampling, TokenChunk
from service.engines.transformers.batching import BatchingEngine
from service.engines.transformers.engine_thread import FAILURES_IN_A_ROW
from service.engines.transformers.scheduler import WORTH_WAITING
from tests.support import streams
from tests.support.streams import Reference
from tests.support.tokens import prompt, sampled

GREEDY = Sampling(temperature=0, max_tokens=20)
SLOTS = 4

Create = Callable[..., BatchingEngine]


@pytest.fixture
async def engine(create: Create) -> AsyncIterator[BatchingEngine]:
    # Small limits, so that a few short prompts exercise chunks, queues, evictions and cache growth.
    engine = create(max_slots=SLOTS, prefill_chunk=24)
    await engine.start()
    yield engine
    await engine.stop()


async def collect(
    engine: Engine, ids: Sequence[int], sampling: Sampling = GREEDY, stop: Sequence[int] = ()
) -> list[TokenChunk]:
    return await streams.collect(engine, ids, sampling, stop)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the engine thread; bounded by the test's timeout."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def is_idle(engine: Engine) -> bool:
    stats = engine.stats()
    return stats.running == stats.waiting == 0


async def test_one_request_is_plain_greedy_decoding(engine: BatchingEngine, reference: Reference) -> None:
    ids = prompt(100)
    chunks = await collect(engine, ids)
    reference.assert_greedy(ids, chunks)
    assert len(chunks) == GREEDY.max_tokens
    assert [chunk.finish_reason for chunk in chunks] == [None] * 19 + ["length"]
    assert "".join(chunk.text for chunk in chunks) == engine.tokenizer.decode(sampled(chunks))


@pytest.mark.parametrize("length", [1, 2, 25, 100])
async def test_prompt_logprobs_are_those_of_the_model(
    engine: BatchingEngine, reference: Reference, length: int
) -> None:
    ids = prompt(length)
    await collect(engine, ids)  # a cached prefix must not hide tokens
    first, *others = await collect(engine, ids, replace(GREEDY, prompt_logprobs=2, max_tokens=3))
    assert len(others) == 2
    assert not any(chunk.prompt_logprobs for chunk in others)
    assert len(first.prompt_logprobs) == length - 1
    with torch.no_grad():
        expected = reference.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    exactness = max(1e-3, reference.atol)
    for place, item in enumerate(first.prompt_logprobs):
        assert item.logprob == pytest.approx(float(expected[place, ids[place + 1]]), abs=exactness)
        found = [top.logprob for top in item.top_logprobs]
        assert found == pytest.approx(expected[place].topk(2).values.tolist(), abs=exactness)
        ids_found = [top.token_id for top in item.top_logprobs]
        assert found == pytest.approx(expected[place, ids_found].tolist(), abs=exactness)
    reference.assert_greedy(ids, [first, *others])


async def test_concurrent_requests_with_cancellation_and_slot_reuse(
    engine: BatchingEngine, reference: Reference
) -> None:
    """Staggered conversations of different lengths; some cancel a turn midway and continue from there."""

    async def conversation(n: int) -> None:
        rng = random.Random(n)
        ids = prompt(rng.choice([1, 2, 15, 40, 130]), seed=n)
        for _ in range(3):
            await asyncio.sleep(rng.random() * 0.02)
            limit = rng.randint(1, 30)
            cut = rng.randint(1, 40)
            chunks = []
            settings = Sampling(temperature=0, max_tokens=limit)
            async with aclosing(engine.generate(ids, settings)) as stream:
                async for chunk in stream:
                    chunks.append(chunk)
                    if len(chunks) == cut:
                        break
            assert len(chunks) == min(limit, cut)
            reference.assert_greedy(ids, chunks)
            ids = [*ids, *sampled(chunks), *prompt(rng.choice([0, 1, 12]), seed=n)]

    await asyncio.gather(*(conversation(n) for n in range(24)))
    await until(lambda: is_idle(engine))


async def test_continuation_prefills_only_new_tokens(engine: BatchingEngine, reference: Reference) -> None:
    ids = prompt(60)
    first = await collect(engine, ids)
    going_on = [*ids, *sampled(first), *prompt(10, seed=1)]
    before = engine.stats()
    second = await collect(engine, going_on)
    after = engine.stats()
    # The last sample had no keys and values yet, so only it and the new tokens are computed.
    assert after.prompt_tokens - before.prompt_tokens == len(going_on)
    assert after.cached_tokens - before.cached_tokens == len(ids) + GREEDY.max_tokens - 1
    reference.assert_greedy(going_on, second)


async def test_only_new_tokens_go_through_the_model(engine: BatchingEngine, runner_class: type) -> None:
    """Count the tokens that reach the model, independent of the reported counters."""
    computed = []
    forward = runner_class.forward

    def spy(self: Any, plan: list) -> object:  # type: ignore[type-arg]
        computed.append(sum(work.stop - work.start for work in plan))
        return forward(self, plan)

    ids = prompt(60)
    with patch.object(runner_class, "forward", spy):
        first = await collect(engine, ids)
        assert sum(computed) == len(ids) + GREEDY.max_tokens - 1
        computed.clear()
        await collect(engine, [*ids, *sampled(first), 5, 6])
        assert sum(computed) == 3 + GREEDY.max_tokens - 1


async def test_samples_of_one_prompt_prefill_it_once(engine: BatchingEngine, reference: Reference) -> None:
    ids = prompt(100)
    results = await asyncio.gather(*(collect(engine, ids) for _ in range(SLOTS)))
    for chunks in results:
        reference.assert_greedy(ids, chunks)
    assert engine.stats().cached_tokens >= (SLOTS - 1) * (len(ids) - 1 - WORTH_WAITING)


async def test_growing_cache_keeps_its_content(engine: BatchingEngine, reference: Reference) -> None:
    short, long = prompt(200), prompt(400)
    both = await asyncio.gather(
        collect(engine, short, Sampling(temperature=0, max_tokens=100)), collect(engine, long)
    )
    reference.assert_greedy(short, both[0])
    reference.assert_greedy(long, both[1])


async def test_seeded_tokens_do_not_depend_on_the_batch(engine: BatchingEngine) -> None:
    ids = prompt(30)
    settings = Sampling(seed=7, max_tokens=40, top_p=0.9)
    alone = await collect(engine, ids, settings)
    crowd = [collect(engine, prompt(n, seed=n), Sampling(seed=n, max_tokens=n)) for n in range(1, 30, 3)]
    crowded, *_ = await asyncio.gather(collect(engine, ids, settings), *crowd)
    assert sampled(crowded) == sampled(alone)
    other = await collect(engine, ids, Sampling(seed=8, max_tokens=40, top_p=0.9))
    assert sampled(other) != sampled(alone)


async def test_stop_token_is_included_and_ends_the_stream(engine: BatchingEngine) -> None:
    ids = prompt(30)
    free = sampled(await collect(engine, ids))
    stop = free[5]
    chunks = await collect(engine, ids, stop=[stop])
    assert sampled(chunks) == free[: free.index(stop) + 1]
    assert chunks[-1].finish_reason == "stop"


async def test_stop_token_waits_for_min_tokens(engine: BatchingEngine) -> None:
    ids = prompt(30)
    stop = sampled(await collect(engine, ids))[5]
    chunks = await collect(engine, ids, replace(GREEDY, min_tokens=12), stop=[stop])
    assert stop not in sampled(chunks)[:12]
    assert len(sampled(chunks)) > 12


async def test_top_logprobs_are_reported_beside_the_sample(engine: BatchingEngine) -> None:
    for chunk in await collect(engine, prompt(9), Sampling(temperature=0, max_tokens=3, top_logprobs=4)):
        (top,) = chunk.top_logprobs
        assert len(top) == 4
        assert (top[0].token_id, top[0].logprob) == (chunk.ids[0], chunk.logprobs[0])
        assert [t.logprob for t in top] == sorted((t.logprob for t in top), reverse=True)
    (chunk,) = await collect(engine, prompt(9), Sampling(max_tokens=1))
    assert chunk.top_logprobs == ()


async def test_closing_the_generator_frees_the_slot(engine: BatchingEngine) -> None:
    running = [engine.generate(prompt(5, seed=n), Sampling(max_tokens=400)) for n in range(SLOTS)]
    for stream in running:
        await anext(stream)
    assert engine.stats().running == SLOTS
    waiting = asyncio.create_task(collect(engine, prompt(9)))
    await running[0].aclose()
    assert len(await waiting) == GREEDY.max_tokens
    for stream in running[1:]:
        await stream.aclose()
    await until(lambda: is_idle(engine))


async def test_cancelling_the_task_frees_the_slot_and_the_queue(engine: BatchingEngine) -> None:
    tasks = [
        asyncio.create_task(collect(engine, prompt(5, seed=n), Sampling(max_tokens=400)))
        for n in range(2 * SLOTS)
    ]
    await until(lambda: engine.stats().running == SLOTS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: is_idle(engine))


async def test_end_of_context_ends_the_stream(create: Create, reference: Reference) -> None:
    engine = create(max_context=40)
    await engine.start()
    assert engine.context_length == 40
    chunks = await collect(engine, prompt(35))
    assert len(chunks) == 5
    assert chunks[-1].finish_reason == "length"
    reference.assert_greedy(prompt(35), chunks)
    assert len(await collect(engine, prompt(39))) == 1
    with pytest.raises(ContextLengthExceededError, match="40 tokens and leaves no room in the context of 40"):
        await collect(engine, prompt(40))
    await engine.stop()


@pytest.mark.parametrize(
    ("ids", "sampling", "message"),
    [
        ([], GREEDY, "prompt is empty"),
        ([1, 365], GREEDY, "outside of 0..364"),
        ([-1], GREEDY, "outside of 0..364"),
        ([1], Sampling(temperature=-1), "temperature is -1, must be 0 or more"),
        ([1], Sampling(temperature=float("nan")), "temperature is nan"),
        ([1], Sampling(top_p=0), "top_p is 0"),
        ([1], Sampling(top_k=-1), "top_k is -1"),
        ([1], Sampling(min_p=1.5), "min_p is 1.5"),
        ([1], Sampling(max_tokens=0), "max_tokens is 0"),
        ([1], Sampling(top_logprobs=-1), "top_logprobs is -1"),
        ([1], Sampling(repetition_penalty=0), "repetition_penalty is 0"),
        ([1], Sampling(presence_penalty=float("inf")), "presence_penalty is inf"),
        ([1], Sampling(logit_bias=((365, 1.0),)), "logit_bias: 365 is outside of 0..364"),
        ([1], Sampling(json_schema='{"contains": {}}'), "can't be enforced"),
        ([1], Sampling(adapter="poet"), "adapter 'poet' is unknown"),
    ],
)
async def test_rejects_invalid_calls_and_names_the_field(
    engine: BatchingEngine, ids: list[int], sampling: Sampling, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        await collect(engine, ids, sampling)


async def test_bias_and_penalties_apply_to_sampled_tokens(engine: BatchingEngine) -> None:
    """A bias makes one token win until its frequency penalty exceeds the bias."""
    sampling = Sampling(temperature=0, max_tokens=40, logit_bias=((7, 100.0),), frequency_penalty=10.0)
    plain, penalised = await asyncio.gather(
        collect(engine, prompt(20), replace(sampling, frequency_penalty=0.0)),
        collect(engine, prompt(20), sampling),
    )
    assert sampled(plain) == [7] * 40
    assert 5 <= sampled(penalised).count(7) < 20


async def test_first_chunk_reports_cached_tokens(engine: BatchingEngine) -> None:
    ids = prompt(60)
    first = await collect(engine, ids)
    again = await collect(engine, [*ids, *sampled(first), 5, 6, 7])
    assert [chunk.cached_tokens for chunk in first] == [0] + [None] * 19
    assert again[0].cached_tokens == 60 + 19  # all but the last sample, which has no keys yet


async def test_engine_continues_after_a_failed_step(
    engine: BatchingEngine, runner_class: type, reference: Reference
) -> None:
    permits, calls, broken = threading.Semaphore(0), [], threading.Event()
    forward = runner_class.forward

    def step_by_step(self: Any, plan: list) -> object:  # type: ignore[type-arg]
        calls.append(plan)
        permits.acquire(timeout=100)
        if broken.is_set():
            broken.clear()
            raise RuntimeError("out of luck")
        return forward(self, plan)

    with patch.object(runner_class, "forward", step_by_step), capture_logs() as logs:
        tasks = [asyncio.create_task(collect(engine, prompt(5, seed=n))) for n in range(SLOTS + 2)]
        await until(lambda: engine.stats().running + engine.stats().waiting == len(tasks))
        permits.release()
        await until(lambda: len(calls) == 2)  # all requests were received and as many as fit are running
        broken.set()
        permits.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, EngineError) and "out of luck" in str(result) for result in results)
    assert [entry["event"] for entry in logs] == ["engine_step_failed"]
    assert engine.healthy
    ids = prompt(20)
    reference.assert_greedy(ids, await collect(engine, ids))


async def test_engine_ends_after_repeated_failures(engine: BatchingEngine, runner_class: type) -> None:
    failing = patch.object(runner_class, "forward", side_effect=RuntimeError("out of luck"))
    with failing, capture_logs() as logs:
        for _ in range(FAILURES_IN_A_ROW):
            with pytest.raises(EngineError, match="out of luck"):
                await collect(engine, prompt(5))
    with pytest.raises(EngineError, match="crashed"):
        await collect(engine, prompt(5))
    assert logs[-1]["event"] == "engine_died"
    assert not engine.healthy


async def test_non_finite_logits_fail_only_their_request(
    engine: BatchingEngine, runner_class: type, reference: Reference
) -> None:
    poisoned, clean = prompt(20, seed=1), prompt(20, seed=2)
    forward = runner_class.forward

    def poison(self: Any, plan: list) -> object:  # type: ignore[type-arg]
        works, logits, scores = forward(self, plan)
        for row, work in enumerate(works):
            if work.request.tokens[: len(poisoned)] == poisoned:
                logits[row] = torch.nan
        return works, logits, scores

    with patch.object(runner_class, "forward", poison):
        failed, fine = await asyncio.gather(
            collect(engine, poisoned), collect(engine, clean), return_exceptions=True
        )
    assert isinstance(failed, EngineError)
    assert "not finite" in str(failed)
    assert not isinstance(fine, BaseException)
    reference.assert_greedy(clean, fine)


async def test_stopping_fails_running_and_later_requests(create: Create) -> None:
    engine = create(max_slots=1)
    with pytest.raises(EngineError, match="not started"):
        await collect(engine, [1])
    await engine.start()
    with pytest.raises(EngineError, match="already started"):
        await engine.start()
    running = engine.generate(prompt(5), Sampling(max_tokens=400))
    await anext(running)
    queued = asyncio.create_task(collect(engine, prompt(6)))
    await asyncio.sleep(0)
    await engine.stop()
    with pytest.raises(EngineError, match="was stopped"):
        async for _ in running:
            pass
    with pytest.raises(EngineError, match="was stopped"):
        await queued
    with pytest.raises(EngineError, match="was stopped"):
        await collect(engine, prompt(5))
    assert not engine.healthy
