"""``ih-grpo store``: back up and restore the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from service.cli.output import abort, explain

if TYPE_CHECKING:
    from service.server.settings import Settings
    from service.store.backup import BackupManifest
    from service.store.files import FileStore

app = typer.Typer(
    help="Back up and restore responses, files and usage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StoreUrl = Annotated[str | None, typer.Option(help="Database. Default: IHGRPO_STORE_URL (store_url).")]
FilesUrl = Annotated[
    str | None, typer.Option(help="Contents of files. Default: IHGRPO_FILES_URL (files_url).")
]


@app.command()
def backup(
    directory: Annotated[Path, typer.Argument(help="Empty or new directory.")],
    store_url: StoreUrl = None,
    files_url: FilesUrl = None,
) -> None:
    """Copy an SQLite store and the contents of its files, also while servers use it."""
    from service.store.backup import back_up
    from service.store.blobs import open_blobs

    settings = load_settings(store_url=store_url, files_url=files_url)
    blobs = open_blobs(settings.files_location)
    manifest = _run(back_up(settings.store_url, blobs, directory, version=version("ih-grpo")))
    _record(settings, "store.backup", directory)
    typer.echo(f"{directory}: {manifest.responses} responses, {manifest.files} files")


@app.command()
def restore(
    directory: Annotated[Path, typer.Argument(help="Directory of a back-up.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing store.")] = False,
    store_url: StoreUrl = None,
    files_url: FilesUrl = None,
) -> None:
    """Copy a back-up to an SQLite store. Stop its servers first."""
    from service.store.backup import restore as restore_backup
    from service.store.blobs import open_blobs

    settings = load_settings(store_url=store_url, files_url=files_url)
    blobs = open_blobs(settings.files_location)
    manifest = _run(restore_backup(directory, settings.store_url, blobs, replace=replace))
    _record(settings, "store.restore", directory)
    typer.echo(f"{settings.store_url}: {manifest.responses} responses, {manifest.files} files")


def load_settings(**given: object) -> Settings:
    """Return the settings of the environment and the options that are not None; exit if one is invalid."""
    from service.server.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        abort(*explain(error))


@asynccontextmanager
async def open_files(settings: Settings) -> AsyncGenerator[FileStore, None]:
    """Open the store of the settings, or exit if that fails. An older schema is upgraded as by a server."""
    from service.store.blobs import open_blobs
    from service.store.database import StoreError
    from service.store.files import FileStore
    from service.store.responses import ResponseStore

    try:
        store = ResponseStore(settings.store_url)
        await store.start()
    except StoreError as error:
        abort(str(error))
    try:
        yield FileStore(
            store.engine,
            open_blobs(settings.files_location),
            max_file_bytes=settings.max_file_bytes,
            max_owner_bytes=settings.key_files_bytes,
        )
    finally:
        await store.stop()


def _run(work: Coroutine[None, None, BackupManifest]) -> BackupManifest:
    from service.store.blobs import BlobError
    from service.store.database import StoreError

    try:
        return asyncio.run(work)
    except (StoreError, BlobError, OSError) as error:
        abort(str(error))


def _record(settings: Settings, action: str, directory: Path) -> None:
    if (log := settings.audit_log()) is not None:
        log.record(action, target=str(directory))
