"""vLLM on the actors of a Ray cluster, by its engine arguments alone. On CPUs that Ray takes for GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.engines.checkpoint import quickstart
from tests.e2e.server import start
from tests.support.vllm_args import VLLM_ARGS, as_options
from trainer.quickstart.traces import held_out_problems

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
ray = pytest.importorskip("ray", reason="needs Ray: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.docker, pytest.mark.timeout(1000)]

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of this machine, with two devices, that vLLM finds by the environment."""
    path = os.pathsep.join([str(TESTS / "support/ray_on_cpus"), str(TESTS.parent)])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's behaviour to be; else it warns
    ray.init(num_gpus=2, num_cpus=2, include_dashboard=False, log_to_driver=False)
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    yield
    started = psutil.Process().children(recursive=True)
    ray.shutdown()
    _, left = psutil.wait_procs(started, timeout=30)
    assert not left


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("arguments", "engines"),
    [
        ({"tensor_parallel_size": 2}, 0),
        ({"data_parallel_size": 2, "data_parallel_backend": "ray"}, 2),
    ],
    ids=["tensor", "data"],
)
def test_two_ray_actors_solve_a_problem(arguments: dict[str, object], engines: int) -> None:
    given = {**VLLM_ARGS, "distributed_executor_backend": "ray", **arguments}
    [problem] = held_out_problems(20_261, 1, ("two_products",))
    server = start(quickstart(), "--engine", "vllm", *as_options(given))
    try:
        names = [process.name() for process in psutil.process_iter()]
        assert len([name for name in names if name.startswith("ray::RayWorkerProc")]) == 2, names
        assert len([name for name in names if "EngineCoreActor" in name]) == engines, names
        reply = server.answer(problem.text)
    finally:
        server.stop()
    assert f"\\boxed{{{problem.answer}}}" in reply
