"""``ih-grpo doctor``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from service.cli.output import abort, explain


def doctor(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint or PEFT adapter: a directory or a hub id; or a GGUF file.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model of an adapter. Default: the one that the adapter names.")
    ] = None,
    sandbox: Annotated[
        str | None, typer.Option(help="runner or in-process. Default: as for `ih-grpo serve`.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the isolation checks, which start a container.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and suggest fixes.

    Checks packages, GPU, checkpoint, Docker, isolation, port, disk and memory, with the settings of
    `ih-grpo serve`. Exits with 1 if a server could not start.

    \b
    Examples:
      ih-grpo doctor
      ih-grpo doctor --model Qwen/Qwen3-4B --quick
    """
    from service.common import logs
    from service.doctor import report
    from service.server.settings import Settings

    logs.configure("error", "console")  # the results contain what the parts would log
    given = {"model": model, "base": base, "sandbox": sandbox, "port": port}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        abort(*explain(error))
    results = list(report.examine(settings, quick=quick))
    if as_json:
        typer.echo(json.dumps(report.as_json(results), indent=2))
    else:
        report.show(results, Console())
    raise typer.Exit(1 if report.failed(results) else 0)
