"""The profile `train`: trains some steps with code in the runner, then serves the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compose.stack import Stack, new_stack

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.compose, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("train-")
    with new_stack("v1", folder, build=("trainer",), COMPOSE_PROFILES="train", TRAINER_MEMORY="4g") as stack:
        yield stack


def test_checkpoint_trained_in_the_stack_is_served(stack: Stack) -> None:
    stack.follow(__file__, "train")
    stack.wait_ready()
    (model,) = stack.get("/v1/models").json()["data"]
    stack.solve(model["id"])
