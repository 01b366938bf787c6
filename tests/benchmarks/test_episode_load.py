"""A small run of the load on real containers."""

from __future__ import annotations

import os

import pytest

from benchmarks.episode_load import FLUSHES, Load, benign_blocks, run_load, script
from service.sandbox.docker.settings import DEFAULT_IMAGE
from tests.hostile.cases import CASES


def test_scripts_of_benign_and_hostile_episodes() -> None:
    assert [output for _, output in benign_blocks(5)] == ["36", "37", "38 37"]
    assert len(script(5, None)) == FLUSHES
    assert script(5, CASES[0])[0] == CASES[0].code


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_nothing_is_lost_or_leaked_with_hostile_episodes() -> None:
    image = os.environ.get("IHGRPO_SANDBOX_IMAGE", DEFAULT_IMAGE)
    load = Load(episodes=40, in_flight=16, containers=6, hostile=0.1, seed=3, image=image)
    report = await run_load(load)
    assert report.problems == [], report.text()
    assert report.started == 40
    assert sum(report.hostile.values()) >= 2
    assert len(report.flush_s) == FLUSHES * report.benign
