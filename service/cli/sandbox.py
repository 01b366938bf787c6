"""``ih-grpo sandbox``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from service.cli.output import abort

app = typer.Typer(help="Manage the sandbox that runs code.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _sandbox() -> None:
    """Manage the sandbox that runs code."""


@app.command()
def build(
    image: Annotated[
        str, typer.Option(help="Tag of the image.", envvar="IHGRPO_SANDBOX_IMAGE")
    ] = "ih-grpo-sandbox:latest",
    base_image: Annotated[
        str | None,
        typer.Option(help="Image to build on. Default: python:3.12-slim.", envvar="IHGRPO_BASE_IMAGE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if the image is up to date.")] = False,
) -> None:
    """Build the sandbox image.

    Uses the Dockerfile in this package. Does nothing if the image is up to date.

    \b
    Example:
      ih-grpo sandbox build --image ih-grpo-sandbox:latest
    """
    from service.sandbox.base import SandboxError
    from service.sandbox.docker.image import build_image

    console = Console(stderr=True)

    def report(line: str) -> None:
        console.print(line, highlight=False, markup=False, overflow="ellipsis", no_wrap=True)

    try:
        built = build_image(image, base_image=base_image, force=force, report=report)
    except SandboxError as error:
        abort(str(error))
    console.print(f"{image} is {'built' if built else 'up to date'}", highlight=False)
