"""vLLM with more than one worker, by its engine arguments alone; on the CPU."""

from __future__ import annotations

import psutil
import pytest

from service.engines.checkpoint import quickstart
from tests.e2e.server import start
from tests.support.vllm_args import VLLM_ARGS, as_options
from trainer.quickstart.traces import held_out_problems

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.docker, pytest.mark.timeout(1000)]


@pytest.mark.parametrize("argument", ["tensor_parallel_size", "data_parallel_size"])
def test_two_parallel_workers_solve_a_problem(monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)  # several workers are processes
    arguments = {**VLLM_ARGS, argument: 2}
    del arguments["distributed_executor_backend"]
    [problem] = held_out_problems(20_261, 1, ("two_products",))
    server = start(quickstart(), "--engine", "vllm", *as_options(arguments))
    try:
        processes = psutil.Process(server.process.pid).children(recursive=True)
        assert len([process for process in processes if "Worker" in process.name()]) == 2
        reply = server.answer(problem.text)
    finally:
        server.stop()
    assert f"\\boxed{{{problem.answer}}}" in reply
    psutil.wait_procs(processes, timeout=30)
    assert not [process for process in processes if process.is_running()]
