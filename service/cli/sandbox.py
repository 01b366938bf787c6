"""``ih-grpo sandbox``."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.cli.output import abort

if TYPE_CHECKING:
    from service.sandbox.docker.packages import Lock

app = typer.Typer(help="Manage the sandbox that runs code.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _sandbox() -> None:
    """Manage the sandbox that runs code."""


@app.command()
def build(
    image: Annotated[
        str | None,
        typer.Option(
            help="Tag of the image. Default: IHGRPO_SANDBOX_IMAGE or ih-grpo-sandbox:latest; with --with, "
            "a tag made from the lock file."
        ),
    ] = None,
    packages: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="PACKAGES",
            help="Packages to add to those of the default image, such as scikit-image,statsmodels>=0.14.",
        ),
    ] = None,
    lock: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Lock file of --with, updated or created. Default: sandbox-packages.lock."
        ),
    ] = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Use the lock file as it is. Does not need uv.")
    ] = False,
    base_image: Annotated[
        str | None,
        typer.Option(help="Image to build on. Default: python:3.12-slim.", envvar="IHGRPO_BASE_IMAGE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if the image is up to date.")] = False,
) -> None:
    """Build the sandbox image, or with --with an image with more packages.

    Uses the Dockerfile in this package. Does nothing if the image is up to date. An image with more packages
    is checked after the build: isolation, and the import of each package.

    \b
    Examples:
      ih-grpo sandbox build
      ih-grpo sandbox build --with scikit-image,statsmodels
      ih-grpo sandbox build --locked --lock sandbox-packages.lock
    """
    from service.sandbox.base import SandboxError
    from service.sandbox.docker.image import build_image
    from service.sandbox.docker.settings import DEFAULT_IMAGE

    console = Console(stderr=True)

    def report(line: str) -> None:
        console.print(line, highlight=False, markup=False, overflow="ellipsis", no_wrap=True)

    try:
        chosen = None
        if packages or locked or lock is not None:
            chosen = _choose_packages(packages or [], lock, locked=locked, console=console)
        if image is None:
            image = (
                os.environ.get("IHGRPO_SANDBOX_IMAGE") or DEFAULT_IMAGE if chosen is None else chosen.image
            )
        built = build_image(image, base_image=base_image, lock=chosen, force=force, report=report)
        console.print(f"{image} is {'built' if built else 'up to date'}", highlight=False)
        if chosen is not None:
            _check_image(image, console)
    except SandboxError as error:
        abort(str(error))


def _choose_packages(given: list[str], path: Path | None, *, locked: bool, console: Console) -> Lock:
    """Return the packages of the lock file, after resolving them unless ``locked``."""
    from service.sandbox.docker.image import build_arguments, index_certificate
    from service.sandbox.docker.packages import LOCK_FILE, Lock, parse_requirements, resolve

    path = path or LOCK_FILE
    requested = parse_requirements(given)
    if locked:
        lock = Lock.read(path)
        lock.check(requested)
        return lock
    if not requested:
        requested = Lock.read(path).requested
    lock = resolve(requested, path, build_arguments(os.environ), index_certificate(os.environ))
    console.print(f"{path}: {len(lock.pins)} packages", highlight=False)
    return lock


def _check_image(image: str, console: Console) -> None:
    """Check a new image and print how to use it."""
    from service.common import logs
    from service.doctor import sandbox as checks
    from service.doctor.report import failed, show
    from service.sandbox.docker.image import inspect_image
    from service.sandbox.factory import SandboxOptions, create_sandbox, instance_name

    logs.configure("error", "console")
    about = inspect_image(image)
    sandbox = create_sandbox(
        SandboxOptions(
            kind="in-process", image=image, pool_size=1, max_containers=2, instance=instance_name("build")
        )
    )
    results = asyncio.run(checks.verify(sandbox, list(about.added)))
    show(results, console)
    if failed(results):
        abort(f"{image} was built, but did not pass its checks")
    console.print(
        f"{image}, {about.size / 1e6:,.0f} MB, {len(about.packages or {})} packages. Use it with\n"
        f"  ih-grpo serve --sandbox in-process --sandbox-image {image}\n"
        f"  ih-grpo runner --image {image}\n"
        f"or set IHGRPO_SANDBOX_IMAGE={image}",
        highlight=False,
        soft_wrap=True,
    )


@app.command("list")
def list_images(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the sandbox images of the Docker daemon.

    \b
    Example:
      ih-grpo sandbox list
    """
    from service.sandbox.base import SandboxError
    from service.sandbox.docker import image as images

    try:
        found = images.list_images()
    except SandboxError as error:
        abort(str(error))
    if as_json:
        fields = [{"image": image.name, "size": image.size, "with": image.requested} for image in found]
        typer.echo(json.dumps(fields, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("image", "MB", "packages added to the default image"):
        table.add_column(column, overflow="fold", justify="right" if column == "MB" else "left")
    for image in found:
        table.add_row(image.name, f"{image.size / 1e6:,.0f}", ", ".join(image.requested) or "none")
    Console().print(table)


@app.command()
def show(
    image: Annotated[
        str, typer.Argument(help="Tag of the image.", envvar="IHGRPO_SANDBOX_IMAGE")
    ] = "ih-grpo-sandbox:latest",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the packages in a sandbox image, with their versions.

    \b
    Example:
      ih-grpo sandbox show ih-grpo-sandbox:latest
    """
    from service.sandbox.base import SandboxError
    from service.sandbox.docker.image import inspect_image

    try:
        about = inspect_image(image)
    except SandboxError as error:
        abort(str(error))
    if as_json:
        typer.echo(json.dumps({**asdict(about), "direct": sorted(about.direct)}, indent=2))
        return
    if about.packages is None:
        abort(f"{image} has no list of its packages: build it again with ih-grpo sandbox build --force")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("package", "version", ""):
        table.add_column(column)
    for name, version in sorted(about.packages.items(), key=lambda item: item[0].lower()):
        kind = "added" if name in about.added else "" if name in about.direct else "dependency"
        table.add_row(name, version, kind)
    Console().print(table)
