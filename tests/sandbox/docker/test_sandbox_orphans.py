from __future__ import annotations

import subprocess
import time

import pytest

from service.common.process_id import process_start
from service.sandbox.docker.sandbox import owner_is_dead, owner_labels
from service.sandbox.docker.settings import DockerSandboxSettings

SETTINGS = DockerSandboxSettings(instance="mine", docker_host="unix:///nowhere")


def labels(**changes: str) -> dict[str, str]:
    return {
        **owner_labels(SETTINGS),
        **{f"ih-grpo.{key.replace('_', '-')}": value for key, value in changes.items()},
    }


def test_own_containers_are_not_orphans() -> None:
    assert not owner_is_dead(labels(), SETTINGS)


def test_a_process_that_ended_is_dead() -> None:
    ended = subprocess.Popen(["true"])
    start = process_start(ended.pid) or ""
    alive = labels(pid=str(ended.pid), pid_start=start)
    ended.wait()
    assert owner_is_dead(alive, SETTINGS)


def test_a_reused_pid_is_not_the_owner() -> None:
    assert owner_is_dead(labels(pid_start="1"), SETTINGS)


@pytest.mark.parametrize(("instance", "dead"), [("mine", True), ("other", False)])
def test_after_a_reboot_only_owners_of_the_same_name_are_dead(instance: str, dead: bool) -> None:
    assert owner_is_dead(labels(boot="another", instance=instance), SETTINGS) is dead


def test_an_owner_in_another_pid_namespace_is_not_dead() -> None:
    assert not owner_is_dead(labels(pid_namespace="pid:[1]", pid="999999999"), SETTINGS)


def test_a_container_past_its_lifetime_is_an_orphan() -> None:
    assert owner_is_dead(labels(pid_namespace="pid:[1]", deadline=str(int(time.time()) - 1)), SETTINGS)


@pytest.mark.parametrize("garbage", [{}, {"ih-grpo.deadline": "soon", "ih-grpo.pid": "x"}])
def test_incomplete_labels_identify_no_orphan(garbage: dict[str, str]) -> None:
    assert not owner_is_dead(garbage, SETTINGS)
