"""The chunked LM head against a naive one: time, peak memory and numerical agreement, forward and backward.

    python benchmarks/head.py --tokens 8192 --vocabulary 151936 --hidden 1024

Each variant runs in its own process, one after the other, so that their memory is measured separately. Peak
extra memory is the process's maximum resident size minus its size after creating the operands. The naive
variant is a careful one: one log-softmax, a gather, and the entropy in row blocks without a gradient. On a
busy machine, compare the CPU seconds (of all threads).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.training.chunked_lm_head import HeadOutput, token_statistics

MARKER = 7


def naive(hidden: Tensor, weight: Tensor, ids: Tensor) -> HeadOutput:
    log_probs = (hidden @ weight.t()).float().log_softmax(-1)
    execute_logits = (hidden @ weight[MARKER]).float()
    with torch.no_grad():
        entropy = torch.cat([-(block.exp() * block).sum(-1) for block in log_probs.split(256)])
    chosen = log_probs.gather(1, torch.stack([ids, torch.full_like(ids, MARKER)], 1))
    return HeadOutput(chosen[:, 0], chosen[:, 1], execute_logits, entropy)


class PeakMemory:
    """Maximum resident size in bytes above that at entry, sampled every few ms (CUDA: from the allocator)."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.extra = 0

    def __enter__(self) -> PeakMemory:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        self.before = resident()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.stopping.wait(0.005):
            self.extra = max(self.extra, resident() - self.before)

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.extra = torch.cuda.max_memory_allocated() - self.before
        else:
            self.stopping.set()
            self.thread.join()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(way: str, a: argparse.Namespace) -> dict[str, Any]:
    """Measure one variant, in the child process."""
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    dtype = getattr(torch, a.dtype)
    hidden = torch.randn(a.tokens, a.hidden, device=a.device).to(dtype).requires_grad_()
    weight = (torch.randn(a.vocabulary, a.hidden, device=a.device) / a.hidden**0.5).to(dtype).requires_grad_()
    ids = torch.randint(a.vocabulary, (a.tokens,), device=a.device)
    upstream = torch.randn(3, a.tokens, device=a.device) / a.tokens
    # A first small product starts the thread pool and allocates library buffers, which must not be measured.
    torch.randn(256, 256, device=a.device) @ torch.randn(256, 256, device=a.device)
    seconds: dict[str, list[float]] = {"forward": [], "backward": [], "cpu": []}
    with PeakMemory(a.device) as peak:
        for _ in range(a.repeats):
            hidden.grad = weight.grad = None
            started, cpu = clock(a.device), time.process_time()
            if way == "naive":
                out = naive(hidden, weight, ids)
            else:
                out = token_statistics(hidden, weight, ids, MARKER, max_tile_elements=a.tile)
            forward = clock(a.device)
            torch.autograd.backward(out[:3], tuple(upstream))
            seconds["forward"].append(forward - started)
            seconds["backward"].append(clock(a.device) - forward)
            seconds["cpu"].append(time.process_time() - cpu)
            checks = {name: getattr(out, name).detach().double().sum().item() for name in out._fields}
            del out
    checks["grad_hidden"] = hidden.grad.double().norm().item()
    checks["grad_weight"] = weight.grad.double().norm().item()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {**medians, "extra_bytes": peak.extra, "checks": checks}


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--tile", type=int, help="elements per tile; default: by device")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--way", choices=["naive", "chunked"], help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.way:
        print(json.dumps(measure(a.way, a)))
        return
    results = {way: run_child(way) for way in ("naive", "chunked")}
    report(a, results)
    if a.json:
        settings = {k: v for k, v in vars(a).items() if k not in ("json", "way")}
        a.json.write_text(
            json.dumps({"settings": settings, "machine": machine(), **results}, indent=1) + "\n"
        )


def run_child(way: str) -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--way", way], stdout=subprocess.PIPE, text=True
    )
    if child.returncode:
        sys.exit(f"{way}: exit code {child.returncode} (-9: killed, most likely out of memory)")
    result: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return result


def machine() -> str:
    cpu = next(
        (
            li.split(":")[1].strip()
            for li in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in li
        ),
        platform.processor(),
    )
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {torch.__version__}"


def report(a: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    print(machine())
    tile = a.tile or "of the default size"
    print(f"N={a.tokens} V={a.vocabulary} H={a.hidden} {a.dtype}, tile {tile}, {a.device} x{a.threads}")
    print(f"{'':10}{'forward s':>12}{'backward s':>12}{'total s':>12}{'CPU s':>12}{'peak extra MiB':>16}")
    for way, r in results.items():
        times = (r["forward"], r["backward"], r["forward"] + r["backward"], r["cpu"])
        print(f"{way:10}{''.join(f'{t:12.3f}' for t in times)}{r['extra_bytes'] / 2**20:16.0f}")
    first, second = results["naive"], results["chunked"]
    wall = (second["forward"] + second["backward"]) / (first["forward"] + first["backward"])
    cpu = second["cpu"] / first["cpu"]
    memory = second["extra_bytes"] / max(first["extra_bytes"], 1)
    print(f"chunked / naive: wall time {wall:.2f}, CPU time {cpu:.2f}, memory {memory:.3f}")
    worst = max(abs(first["checks"][k] - v) / (abs(v) + 1e-12) for k, v in second["checks"].items())
    print(f"largest relative difference of the sums and gradient norms: {worst:.1e}")


if __name__ == "__main__":
    main()
