from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.engines.remote.engine import Balancer

INSTRUCTION = list(range(1000, 1100))


def test_new_prompts_are_distributed_despite_a_shared_prefix() -> None:
    balancer = Balancer(3, max_imbalance=4)
    chosen = []
    for number in range(9):
        prompt = [*INSTRUCTION, number]
        server = balancer.choose(prompt, range(3))
        balancer.running[server] += 1
        balancer.remember(server, prompt, [7] * 40)
        chosen.append(server)
    assert Counter(chosen) == {0: 3, 1: 3, 2: 3}


@given(st.integers(0, 60), st.integers(32, 200), st.integers(0, 50), st.integers(0, 2))
def test_episode_stays_on_its_server(prompt: int, sampled: int, observed: int, home: int) -> None:
    balancer = Balancer(3, max_imbalance=4)
    start, reply = list(range(prompt)), list(range(5000, 5000 + sampled))
    balancer.remember(home, start, reply)
    balancer.running[home] = 4
    assert balancer.choose([*start, *reply, *range(observed)], range(3)) == home


def test_leaves_a_server_that_is_down_or_overloaded() -> None:
    balancer = Balancer(3, max_imbalance=4)
    context = list(range(64))
    balancer.remember(2, [], context)
    assert balancer.choose(context, [0, 1, 2]) == 2
    assert balancer.choose(context, [0]) == 0
    balancer.running = [1, 0, 5]
    assert balancer.choose(context, [0, 1, 2]) == 1
    assert balancer.choose(context, [0, 2]) == 2


def test_latest_server_of_an_episode_wins() -> None:
    balancer = Balancer(2, max_imbalance=4)
    first, second = list(range(40)), list(range(100, 140))
    balancer.remember(0, [1], first)
    balancer.remember(1, [1, *first, 9, 9], second)
    assert balancer.choose([1, *first, 9, 9, *second, 8], range(2)) == 1
    assert balancer.choose([1, *first, 9, 9, 9], range(2)) == 0


def test_memory_is_bounded_and_drops_the_oldest() -> None:
    balancer = Balancer(2, max_imbalance=0, memory=3)
    contexts = [[number] * 32 for number in range(5)]
    for context in contexts:
        balancer.remember(1, [], context)
    balancer.running = [0, 0]
    assert [balancer.choose(context, [0, 1]) for context in contexts[2:]] == [1, 1, 1]
    assert len(balancer._places) == 3
