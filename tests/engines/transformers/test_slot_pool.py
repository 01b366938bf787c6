from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.engines.transformers.scheduler import WORTH_WAITING, Slot, SlotPool, common_prefix

ids = st.lists(st.integers(0, 2), max_size=12)


@given(ids, ids, ids)
def test_common_prefix_matches_a_loop(shared: list[int], a: list[int], b: list[int]) -> None:
    a, b = shared + a, shared + b
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(a, b) == expected


def run(pool: SlotPool, tokens: list[int]) -> Slot:
    """Run one sequence from allocation to release."""
    claim = pool.claim(tokens)
    assert claim is not None
    claim.slot.length = len(tokens)
    pool.release(claim.slot)
    return claim.slot


def test_continuation_reuses_its_slot_in_place() -> None:
    pool = SlotPool(3)
    first = run(pool, [1, 2, 3])
    run(pool, [7, 8])
    claim = pool.claim([1, 2, 3, 4])
    assert claim is not None
    assert (claim.slot, claim.reused, claim.source) == (first, 3, None)


def test_the_last_prompt_token_is_always_computed() -> None:
    pool = SlotPool(1)
    run(pool, [1, 2, 3])
    claim = pool.claim([1, 2, 3])
    assert claim is not None
    assert claim.reused == 2


def test_fork_copies_the_prefix_and_keeps_the_original() -> None:
    pool = SlotPool(2)
    first = run(pool, [1, 2, 3, 4])
    claim = pool.claim([1, 2, 9])
    assert claim is not None
    assert (claim.reused, claim.source) == (2, first)
    assert claim.slot is not first
    assert first.tokens == [1, 2, 3, 4]


def test_prefix_of_a_busy_slot_is_copied() -> None:
    pool = SlotPool(2)
    busy = pool.claim([1, 2, 3])
    assert busy is not None
    busy.slot.length = 3
    claim = pool.claim([1, 2, 3, 4])
    assert claim is not None
    assert claim.slot is not busy.slot
    assert (claim.reused, claim.source) == (3, busy.slot)
    assert pool.claim([5]) is None  # both are busy


def test_the_least_recently_used_slot_is_overwritten() -> None:
    pool = SlotPool(3)
    slots = [run(pool, [10 * n, 10 * n + 1]) for n in range(1, 4)]
    assert len(set(slots)) == 3
    assert run(pool, [10, 11, 12]) is slots[0]  # now the most recent
    claim = pool.claim([99])
    assert claim is not None
    assert (claim.slot, claim.reused) == (slots[1], 0)


def test_waits_for_a_sequence_with_the_same_prompt() -> None:
    pool = SlotPool(2)
    prompt = list(range(WORTH_WAITING + 1))
    reader = pool.claim(list(prompt))
    assert reader is not None
    assert pool.claim(list(prompt)) is None
    reader.slot.length = WORTH_WAITING
    claim = pool.claim(list(prompt))
    assert claim is not None
    assert (claim.reused, claim.source) == (WORTH_WAITING, reader.slot)


def test_does_not_wait_for_a_short_shared_prefix() -> None:
    pool = SlotPool(2)
    assert pool.claim([1, 2, 3, 4]) is not None
    claim = pool.claim([1, 2, 3, 5])
    assert claim is not None
    assert claim.reused == 0


def test_only_computed_tokens_are_kept() -> None:
    pool = SlotPool(1)
    claim = pool.claim([1, 2, 3, 4])
    assert claim is not None
    claim.slot.length = 2  # cancelled in the middle of its prompt
    pool.release(claim.slot)
    again = pool.claim([1, 2, 3, 4])
    assert again is not None
    assert again.reused == 2


def test_forgetting_keeps_running_sequences_but_not_their_state() -> None:
    pool = SlotPool(2)
    run(pool, [1, 2, 3])
    running = pool.claim([5, 6, 7])
    assert running is not None
    running.slot.length = 3
    pool.forget()
    assert (running.slot.length, running.slot.tokens) == (0, [5, 6, 7])
    claim = pool.claim([1, 2, 3])
    assert claim is not None
    assert claim.reused == 0
