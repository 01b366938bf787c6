"""Run all checks, in the order of a server's start, and format the results."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.doctor import CheckResult, docker_daemon, gpu_plan, machine, model, sandbox
from service.server.settings import Settings

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def examine(settings: Settings, *, quick: bool = False) -> Iterator[CheckResult]:
    """Run the checks and yield each result. ``quick`` skips the isolation checks, which start a container."""
    engine = settings.engine_kind
    yield machine.packages(engine)
    yield machine.gpu(settings)
    folder, found = model.find(settings.model, settings.base)
    yield found
    if folder is not None and folder.is_dir():
        yield from _weights(settings, folder)
    if not settings.engine_url:
        yield gpu_plan.suggest()
    if engine == "remote":
        yield from (_server(url) for url in settings.engine_url)
    if settings.sandbox_kind == "runner":
        yield from asyncio.run(sandbox.runners(settings))
        containers = 0  # the runner starts them, possibly on another machine
    else:
        yield from (docker := docker_daemon.docker(settings))
        has_own_memory = any(result.check == docker_daemon.MEMORY_CHECK for result in docker)
        containers = 0 if has_own_memory else settings.max_containers
        if not quick and not failed(docker):
            yield asyncio.run(sandbox.isolation(sandbox.docker_sandbox(settings)))
    yield machine.port(settings)
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    yield machine.disk(home, needed=machine.GIB if folder is not None else 10 * machine.GIB)
    on_cpu = engine in ("transformers", "gguf") and folder is not None
    yield machine.memory(model.weights(folder) if on_cpu and folder else 0, containers)


def _weights(settings: Settings, folder: Path) -> Iterator[CheckResult]:
    """Check whether the engine can load the checkpoint, and whether it fits into the GPU."""
    engine, method = settings.engine_kind, gpu_plan.quantization(folder)
    if method is not None and engine == "transformers":
        found = f"{folder.name} is quantised ({method}), which the embedded engine can't load"
        yield CheckResult("quantisation", "fail", found, "set engine to vllm")
    if engine == "vllm" and (gpu := gpu_plan.gpu_memory()):
        parallel = int(settings.vllm_args.get("tensor_parallel_size", 1))
        yield gpu_plan.fit(folder, model.weights(folder), gpu * parallel)


def _server(url: str) -> CheckResult:
    try:
        httpx.get(f"{url.rstrip('/').removesuffix('/v1')}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        return CheckResult("vllm", "fail", f"{url}: {error}", "start it, or remove it from engine_url")
    return CheckResult("vllm", "ok", url)


def as_json(results: list[CheckResult]) -> dict[str, object]:
    """Results as JSON: ``ok``, and one object per check."""
    return {"ok": not failed(results), "checks": [asdict(result) for result in results]}


def failed(results: list[CheckResult]) -> bool:
    """Whether a check failed, so that a server could not start."""
    return any(result.verdict == "fail" for result in results)


def show(results: list[CheckResult], console: Console) -> None:
    """Print a table, with hints for the checks that did not pass."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("check", "", "found"):
        table.add_column(column, overflow="fold")
    for result in results:
        hint = f"\n[dim]->[/] {escape(result.hint)}" if result.hint else ""
        verdict = f"[{_COLOURS[result.verdict]}]{result.verdict}[/]"
        table.add_row(result.check, verdict, f"{escape(result.found)}{hint}")
    console.print(table)
