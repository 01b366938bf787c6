"""``ih-grpo key``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from service.cli.output import abort


def key(
    name: Annotated[str, typer.Option(help="Name of the key in logs and metrics; one word.")] = "client",
    rpm: Annotated[int | None, typer.Option(min=1, help="Limit of requests per minute.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Limit of concurrent requests.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Also allow the routes below /admin.")] = False,
) -> None:
    """Create an API key.

    Prints the secret for the client on stderr, and the line for the server's key file (api_keys_file), which
    holds only a hash, on stdout.

    \b
    Example:
      ih-grpo key --name ci --rpm 60 >> keys
      ih-grpo serve --api-keys-file keys
    """
    from service.api.auth import ADMIN, digest_of, new_key, parse_key

    secret = new_key()
    options = {"name": name, "rpm": rpm, "concurrency": concurrency, "scope": ADMIN if admin else None}
    line = f"sha256:{digest_of(secret).hex()}" + "".join(
        f" {option}={value}" for option, value in options.items() if value is not None
    )
    try:
        parse_key(line, hashed=True)
    except ValueError as error:
        abort(str(error))
    console = Console(stderr=True)
    console.print("[bold]Secret[/] for the client's Authorization header. It is not shown again:")
    console.print(f"  {secret}", highlight=False, soft_wrap=True)
    console.print("Line for the key file (on stdout):")
    typer.echo(line)
