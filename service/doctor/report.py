"""All checks, in the order in which a server would meet them, and how they are shown."""

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

from service.doctor import CheckResult, machine, model, sandbox
from service.server.settings import Settings

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def examine(settings: Settings, *, quick: bool = False) -> Iterator[CheckResult]:
    """Every finding, as soon as it is there. ``quick`` starts no container."""
    engine = settings.engine_kind
    yield machine.packages(engine)
    yield machine.gpu(settings)
    folder, found = model.find(settings.model)
    yield found
    if engine == "remote":
        yield from (_server(url) for url in settings.engine_url)
    if settings.sandbox_kind == "runner":
        yield asyncio.run(sandbox.runner(settings))
        containers = 0  # the runner's business, maybe on another machine
    else:
        containers = settings.max_containers
        yield from (docker := sandbox.docker(settings))
        if not quick and all(finding.verdict == "ok" for finding in docker):
            yield asyncio.run(sandbox.isolation(sandbox.docker_sandbox(settings)))
    yield machine.port(settings)
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    yield machine.disk(home, needed=machine.GIB if folder is not None else 10 * machine.GIB)
    on_cpu = engine == "transformers" and folder is not None
    yield machine.memory(model.weights(folder) if on_cpu and folder else 0, containers)


def _server(url: str) -> CheckResult:
    try:
        httpx.get(f"{url.rstrip('/').removesuffix('/v1')}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        return CheckResult("vllm", "fail", f"{url}: {error}", "start it, or take it out of engine_url")
    return CheckResult("vllm", "ok", url)


def as_json(findings: list[CheckResult]) -> dict[str, object]:
    """For programs: ``ok``, and one object a check."""
    return {"ok": not failed(findings), "checks": [asdict(finding) for finding in findings]}


def failed(findings: list[CheckResult]) -> bool:
    """Would a server not start?"""
    return any(finding.verdict == "fail" for finding in findings)


def show(findings: list[CheckResult], console: Console) -> None:
    """For eyes: a table, and under each line that is not well its hint."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("check", "", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        hint = f"\n[dim]->[/] {escape(finding.hint)}" if finding.hint else ""
        verdict = f"[{_COLOURS[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(finding.check, verdict, f"{escape(finding.found)}{hint}")
    console.print(table)
