from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from service.engines.base import Sampling
from service.engines.token_stream import DetokenizerFactory
from service.engines.transformers.sampling import Draw
from service.engines.transformers.scheduler import Request, Scheduler
from tests.support.tiny_qwen3 import make_tokenizer

FACTORY = DetokenizerFactory(make_tokenizer().backend_tokenizer)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def request(loop: asyncio.AbstractEventLoop, length: int, first: int = 0, **sampling: object) -> Request:
    return Request(
        tokens=[first, *range(1, length)],
        sampling=Sampling(**sampling),  # type: ignore[arg-type]
        stop_token_ids=frozenset({99}),
        context_length=100,
        detokenizer=FACTORY(),
        loop=loop,
    )


def step(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    """Run one step without a model, sampling token 7 where due. Return (first id, start, stop) per work
    item."""
    plan = scheduler.plan()
    ran = [(work.request.tokens[0], work.start, work.stop) for work in plan]
    for work in plan:
        work.slot.length = work.stop
        if work.samples:
            work.request.accept(Draw(7, -1.0))
    return ran


def test_prompts_are_prefilled_in_chunks_beside_streams(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler(max_slots=3, prefill_chunk=4)
    scheduler.waiting.extend([request(loop, 2, 10), request(loop, 7, 20), request(loop, 3, 30)])
    list(scheduler.admit())
    assert step(scheduler) == [(10, 0, 2), (20, 0, 2)]
    assert step(scheduler) == [(10, 2, 3), (20, 2, 6)]
    assert step(scheduler) == [(10, 3, 4), (20, 6, 7), (30, 0, 3)]
    assert step(scheduler) == [(10, 4, 5), (20, 7, 8), (30, 3, 4)]


def test_admission_is_fifo_and_limited_by_slots(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler(max_slots=2, prefill_chunk=100)
    requests = [request(loop, 3, 10 * n) for n in range(4)]
    scheduler.waiting.extend(requests)
    assert [r for r, _ in scheduler.admit()] == requests[:2]
    scheduler.finish(requests[1])
    assert [r for r, _ in scheduler.admit()] == requests[2:3]
    assert list(scheduler.waiting) == requests[3:]


def test_cancelled_requests_are_removed(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler(max_slots=2, prefill_chunk=100)
    requests = [request(loop, 3, 10 * n) for n in range(4)]
    scheduler.waiting.extend(requests)
    list(scheduler.admit())
    requests[0].cancelled = requests[2].cancelled = True
    scheduler.drop_cancelled()
    assert scheduler.running == requests[1:2]
    assert [r for r, _ in scheduler.admit()] == requests[3:]


def test_drain_removes_all_requests(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler(max_slots=1, prefill_chunk=100)
    requests = [request(loop, 3, 10 * n) for n in range(3)]
    scheduler.waiting.extend(requests)
    list(scheduler.admit())
    assert scheduler.drain() == requests
    assert not scheduler.busy
    assert not any(slot.busy for slot in scheduler.pool.slots)


@pytest.mark.parametrize(
    ("length", "token", "max_tokens", "reason"),
    [(3, 7, 5, None), (3, 99, 5, "stop"), (3, 7, 1, "length"), (3, 99, 1, "stop"), (99, 7, 5, "length")],
)
def test_finish_reasons(
    loop: asyncio.AbstractEventLoop, length: int, token: int, max_tokens: int, reason: str | None
) -> None:
    assert request(loop, length, max_tokens=max_tokens).accept(Draw(token, -1.0)).finish_reason == reason


def test_random_numbers_depend_only_on_seed_and_prompt_length(loop: asyncio.AbstractEventLoop) -> None:
    def numbers(length: int, seed: int | None) -> list[float]:
        r = request(loop, length, seed=seed)
        return [r.uniform() for _ in range(3)]

    assert numbers(3, 1) == numbers(3, 1)
    assert len({tuple(numbers(*case)) for case in [(3, 1), (3, 2), (4, 1), (3, None), (3, None)]}) == 5


def test_full_cache_loses_the_least_recently_used_idle_slot(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler(max_slots=3, prefill_chunk=100)
    old, recent, running = (request(loop, 3, 10 * n) for n in range(1, 4))
    scheduler.waiting.extend([old, recent, running])
    list(scheduler.admit())
    slots = [r.slot for r in (old, recent)]
    step(scheduler)
    scheduler.finish(old)
    scheduler.finish(recent)
    assert [scheduler.make_room(), scheduler.make_room()] == slots
    assert [(slot.length, slot.tokens) for slot in slots if slot] == [(0, []), (0, [])]
    assert scheduler.running == [running]


def test_newest_request_waits_if_all_slots_are_busy(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler(max_slots=2, prefill_chunk=100)
    first, second, third = (request(loop, 3, 10 * n) for n in range(1, 4))
    scheduler.waiting.extend([first, second, third])
    list(scheduler.admit())
    step(scheduler)
    slot = second.slot
    assert scheduler.make_room() is slot
    assert (scheduler.running, list(scheduler.waiting)) == ([first], [second, third])
    # Nobody joins while the cache is full, although a slot is free.
    assert list(scheduler.admit()) == []
    assert step(scheduler) == [(10, 3, 4)]
    scheduler.finish(first)
    assert [r for r, _ in scheduler.admit()] == [second, third]
    assert step(scheduler) == [(20, 0, 4), (30, 0, 3)]


def test_single_sequence_must_fit_into_the_cache(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler(max_slots=2, prefill_chunk=100)
    scheduler.waiting.append(request(loop, 3))
    list(scheduler.admit())
    with pytest.raises(RuntimeError, match="too small"):
        scheduler.make_room()
