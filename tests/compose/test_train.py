"""The profile `train`: steps of training with code in the runner; the checkpoint is served."""

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


def test_what_was_trained_in_the_stack_is_served_by_it(stack: Stack) -> None:
    # At a temperature at which its samples differ: where all agree, nothing is learned and steps are skipped.
    lean = {"steps": 2, "save_every": 2, "prompts_per_step": 2, "temperature": 1.3}
    settings = [part for key, value in lean.items() for part in ("--set", f"{key}={value}")]
    stack.compose("run", "--rm", "-T", "trainer", "--recipe", "recipes/quickstart.toml", *settings)
    stack.configure(IHGRPO_MODEL="/var/lib/ih-grpo/runs/quickstart/checkpoints/checkpoint-2")
    stack.compose("up", "-d", "api")
    stack.wait_ready()
    (model,) = stack.get("/v1/models").json()["data"]
    stack.solve(model["id"])
