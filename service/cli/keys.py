"""``ih-grpo keys``: create, change and revoke API keys, show use and delete data."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from service.cli.output import abort
from service.cli.store import FilesUrl, StoreUrl, load_settings, open_files

if TYPE_CHECKING:
    from service.api.auth import ApiKey
    from service.server.settings import Settings

app = typer.Typer(
    help="Create, change and revoke API keys, show their use and delete their data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_LIMITS: Final = {
    "rpm": typer.Option(min=1, help="Limit of requests per minute."),
    "concurrency": typer.Option(min=1, help="Limit of concurrent requests."),
    "tokens_per_day": typer.Option(min=0, help="Quota of tokens per day (UTC)."),
    "tokens_per_month": typer.Option(min=0, help="Quota of tokens per month."),
    "sandbox_seconds_per_day": typer.Option(min=0, help="Quota of seconds of code per day."),
    "sandbox_seconds_per_month": typer.Option(min=0, help="Quota of seconds of code per month."),
    "stored_bytes": typer.Option(min=0, help="Quota of stored bytes."),
}
"""Options for the limits of a key, by their names in the key file."""
_File = Annotated[
    Path | None, typer.Option("--file", help="Key file. Default: IHGRPO_API_KEYS_FILE (api_keys_file).")
]
_Name = Annotated[str, typer.Argument(help="Name of the key, or its id sha256:HEX.")]


def _with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options `_LIMITS` to ``command`` in place of its parameter ``limits``, which gets their values.

    The values are integers by the name of the option. Options that were not given are left out.
    """

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {name: value for name in _LIMITS if (value := values.pop(name)) is not None}
        command(**values, limits=given)

    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "limits":
            parameters += (
                parameter.replace(name=name, default=None, annotation=Annotated[int | None, option])
                for name, option in _LIMITS.items()
            )
        else:
            parameters.append(parameter)
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


@app.command("create")
@_with_limits
def key(
    name: Annotated[str, typer.Option(help="Name of the key in logs and metrics; one word.")] = "client",
    *,
    limits: Mapping[str, int],
    admin: Annotated[bool, typer.Option("--admin", help="Also allow the routes below /admin.")] = False,
) -> None:
    """Create an API key.

    Prints the secret for the client on stderr, and the line for the server's key file (api_keys_file), which
    holds only a hash, on stdout.

    \b
    Example:
      ih-grpo keys create --name ci --rpm 60 --tokens-per-day 100000 >> keys
      ih-grpo serve --api-keys-file keys
    """
    from service.api.auth import ADMIN, digest_of, new_key, parse_key

    secret = new_key()
    options = {"name": name, **limits} | ({"scope": ADMIN} if admin else {})
    line = f"sha256:{digest_of(secret).hex()}" + "".join(
        f" {option}={value}" for option, value in options.items()
    )
    try:
        created = parse_key(line, hashed=True)
    except ValueError as error:
        abort(str(error))
    _audit("key.create", created.name, created.owner)
    console = Console(stderr=True)
    console.print("[bold]Secret[/] for the client's Authorization header. It is not shown again:")
    console.print(f"  {secret}", highlight=False, soft_wrap=True)
    console.print("Line for the key file (on stdout):")
    typer.echo(line)


@app.command()
@_with_limits
def update(
    name: _Name,
    file: _File = None,
    *,
    limits: Mapping[str, int],
    unset: Annotated[
        list[str] | None, typer.Option(help="Option to remove, such as tokens_per_day; repeatable.")
    ] = None,
) -> None:
    """Change limits and quotas of a key in the key file. Servers read it at their start."""
    path = _key_file(file)
    found = _entry(path, name)
    first, *options = found.split()
    removed = {*limits, *(unset or ())}
    kept = [option for option in options if option.partition("=")[0] not in removed]
    line = " ".join([first, *kept, *(f"{option}={value}" for option, value in limits.items())])
    changed = _parsed(line)
    _rewrite(path, found, line)
    _audit("key.update", changed.name, changed.owner)
    typer.echo(line)


@app.command()
def revoke(name: _Name, file: _File = None) -> None:
    """Remove a key from the key file. Running servers accept it until they are restarted.

    Its data stays. `ih-grpo keys delete-data` deletes it by the id that this command prints.
    """
    path = _key_file(file)
    found = _entry(path, name)
    revoked = _parsed(found)
    _rewrite(path, found, None)
    _audit("key.revoke", revoked.name, revoked.owner)
    typer.echo(f"sha256:{revoked.owner}")


@app.command()
def usage(
    name: Annotated[str | None, typer.Argument(help="Name or id of a key. Default: all keys.")] = None,
    days: Annotated[int, typer.Option(min=1, max=3660, help="Days to sum up, including today.")] = 30,
    store_url: StoreUrl = None,
    file: _File = None,
) -> None:
    """Show requests, tokens, seconds of code and stored bytes of each key, and its quotas."""
    settings = load_settings(store_url=store_url, api_keys_file=file)
    owner = None if name is None else _owner(settings, name)
    table = asyncio.run(_usage_table(settings, owner, days))
    Console().print(table)


async def _usage_table(settings: Settings, owner: str | None, days: int) -> Table:
    from service.store.usage import DAY_S, Consumption, UsageStore, day_start

    keys = {key.owner: key for key in _keys(settings)}
    async with open_files(settings) as files:
        store = UsageStore(files.engine, days=settings.usage_days)
        now = store.clock()
        start = day_start(now) - (days - 1) * DAY_S
        results = await store.results(
            start, int(now) + 1, width_s=DAY_S, owners=None if owner is None else [owner], by_owner=True
        )
        owners = dict.fromkeys(
            [owner] if owner is not None else [*keys, *(one.owner or "" for one in results)]
        )
        table = Table("key", "requests", "input tokens", "output tokens", "seconds", "stored bytes")
        table.add_column("quotas", overflow="fold")
        for one in owners:
            used = [result.used for result in results if (result.owner or "") == one]
            total = Consumption(
                sum(part.requests for part in used),
                sum(part.input_tokens for part in used),
                sum(part.output_tokens for part in used),
                sum(part.sandbox_seconds for part in used),
            )
            key = keys.get(one)
            quota = settings.key_quota() if key is None else key.quota.or_default(settings.key_quota())
            limits = "\n".join(
                f"{field}={getattr(quota, field):g}"
                for field in quota.__dataclass_fields__
                if getattr(quota, field) is not None
            )
            table.add_row(
                key.name if key is not None else f"sha256:{one}" if one else "without a key",
                *(str(number) for number in (total.requests, total.input_tokens, total.output_tokens)),
                f"{total.sandbox_seconds:.1f}",
                str(await store.stored_bytes(one)),
                limits or "none",
            )
    return table


@app.command("delete-data")
def delete_data(
    name: _Name,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store_url: StoreUrl = None,
    files_url: FilesUrl = None,
    file: _File = None,
) -> None:
    """Delete all data of a key: responses, files, containers, replies and usage.

    Revoke the key and restart the servers first. Otherwise requests in flight can store new data. The audit
    log keeps its entries, which have no content.
    """
    settings = load_settings(store_url=store_url, files_url=files_url, api_keys_file=file)
    owner = _owner(settings, name)

    async def run(*, delete: bool) -> dict[str, int]:
        from service.store.owner_data import count_owner_data, delete_owner_data

        async with open_files(settings) as files:
            return await (delete_owner_data if delete else count_owner_data)(files, owner)

    counts = asyncio.run(run(delete=False))
    for table, count in sorted(counts.items()):
        typer.echo(f"{table:20} {count}")
    if dry_run:
        return
    if not yes:
        typer.confirm(f"Delete all of it, of key {name}?", abort=True)
    asyncio.run(run(delete=True))
    _audit("data.delete", name, owner)
    typer.echo("Deleted.")


def _owner(settings: Settings, name: str) -> str:
    """Return the owner of the key with a name or id, or exit if it is unknown."""
    if found := re.fullmatch(r"sha256:([0-9a-fA-F]{64})", name):
        return found[1].lower()
    owners = {key.owner for key in _keys(settings) if key.name == name}
    if len(owners) != 1:
        what = "several keys" if owners else "no key"
        abort(f"{what} named {name!r} in the settings: give the id, sha256:HEX")
    return owners.pop()


def _keys(settings: Settings) -> tuple[ApiKey, ...]:
    return settings.keys()


def _key_file(file: Path | None) -> Path:
    path = load_settings(api_keys_file=file).api_keys_file
    if path is None:
        abort("no key file: give --file, or set IHGRPO_API_KEYS_FILE")
    return path


def _entries(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        abort(f"{path}: {error.strerror}")
    yield from (line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _entry(path: Path, name: str) -> str:
    """Return the line of the key with a name or id, or exit if it is unknown."""
    lines = [line for line in _entries(path) if name in ((key := _parsed(line)).name, f"sha256:{key.owner}")]
    if len(lines) != 1:
        abort(f"{path} has {'several keys' if lines else 'no key'} {name!r}: give the id, sha256:HEX")
    return lines[0]


def _parsed(line: str) -> ApiKey:
    from service.api.auth import parse_key

    try:
        return parse_key(line, hashed=True)
    except ValueError as error:
        abort(str(error))


def _rewrite(path: Path, old: str, new: str | None) -> None:
    """Replace a line, or remove it, and keep the mode of the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = [new if line == old else line for line in lines]
    text = "".join(f"{line}\n" for line in changed if line is not None)
    unfinished = path.with_name(f".{path.name}.new")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, path.stat().st_mode & 0o777)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    unfinished.replace(path)


def _audit(action: str, name: str, owner: str) -> None:
    """Log an action if the settings in the environment name a directory of the audit log."""
    if not os.environ.get("IHGRPO_AUDIT_DIR"):
        return
    log = load_settings().audit_log()
    if log is not None:
        log.record(action, target=f"sha256:{owner}", name=name, user=os.environ.get("USER"))
