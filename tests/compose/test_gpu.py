"""The profile `gpu` end to end, with vLLM on the CPU."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.compose.stack import REPO, Stack, image_of, new_stack

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.compose, pytest.mark.timeout(1500)]

MODEL = "/var/lib/ih-grpo/models/quickstart"
"""Path of the checkpoint in the volume that api and vllm share, in place of a hub download."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("gpu-")
    subprocess.run([REPO / "scripts/ensure-vllm"], check=True)
    (packages,) = (REPO / ".venv-vllm/lib").glob("python3*/site-packages")
    mount = f"{packages}:/opt/vllm:ro"
    (folder / "packages.yml").write_text(f'services: {{vllm: {{volumes: ["{mount}"]}}}}\n')
    with new_stack(
        "v2",
        folder,
        VLLM_IMAGE=image_of("vllm"),
        COMPOSE_FILE=os.pathsep.join(["docker-compose.yml", "docker-compose.override.yml", "packages.yml"]),
        COMPOSE_PROFILES="gpu",
        GPU_RUNTIME="runc",
        MODEL=MODEL,
        # The CPU's default blocks of 128 tokens are longer than the problem; multiples of 32 are allowed.
        VLLM_ARGS="--enforce-eager --dtype float32 --max-model-len 2048 --block-size 32",
        VLLM_MEMORY="6g",
        VLLM_SHM="1g",
    ) as stack:
        copy = ("cp", "api", "-r", "/srv/ih-grpo/checkpoints/quickstart", MODEL)
        stack.compose("run", "--rm", "-T", "--no-deps", "--entrypoint", *copy)
        stack.compose("up", "-d")
        stack.wait_ready(600)
        yield stack


def test_solves_a_problem_with_vllm(stack: Stack) -> None:
    health = ["python3", "-c", "import urllib.request as u; u.urlopen('http://vllm:8000/health')"]
    assert stack.container("api").exec_run(health).exit_code == 0
    stack.solve()
    assert stack.container("api").attrs["RestartCount"] == 0  # it waited for vLLM
    assert 'ihgrpo_tool_executed_total{status="ok"} 3.0' in stack.get("/metrics").text


def test_vllm_has_the_prefix_cached_after_a_flush(stack: Stack) -> None:
    command = [
        "python3",
        "-c",
        "import urllib.request as u; print(u.urlopen('http://vllm:8000/metrics').read().decode())",
    ]
    metrics = stack.container("api").exec_run(command).output.decode()
    counted = {line.split("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if "{" in line}
    assert counted["vllm:generation_tokens_total"] > 50
    assert counted["vllm:prefix_cache_hits_total"] > 0


def test_vllm_port_is_not_published(stack: Stack) -> None:
    assert not stack.container("vllm").attrs["HostConfig"]["PortBindings"]


def test_api_is_not_ready_while_vllm_is_down_and_recovers(stack: Stack) -> None:
    stack.compose("stop", "vllm")
    deadline = time.monotonic() + 60
    while stack.get("/ready").status_code != 503:
        assert time.monotonic() < deadline
        time.sleep(1)
    stack.compose("start", "vllm")
    stack.wait_ready(600)
    stack.solve()
