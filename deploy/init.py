"""Prepares the secrets of the stack, before anything else starts: ``init.py FOLDER GIVEN``.

What is made is made once and kept; what the operator gave (API keys) is copied anew each time. Only the group
of the services may read a file. Needs nothing but Python.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import sys
from pathlib import Path

GROUP = 10001
"""User and group of the services, see the Dockerfile."""


def make_once(path: Path) -> str:
    """The secret in ``path``, which is made where there is none yet."""
    if not path.exists() or not path.read_text().strip():
        write(path, secrets.token_hex(32) + "\n")
    return path.read_text().strip()


def write(path: Path, text: str, *, mode: int = 0o440, owner: int = 0) -> None:
    """Whole or not at all, and never readable by others, not for a moment."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
        os.fchmod(descriptor, mode)
        os.fchown(descriptor, owner, GROUP)
    temporary.rename(path)


def given_keys(file: Path) -> list[str]:
    """The lines of the operator's key file, see `ih-grpo key`; none where there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches what is published there."""
    try:
        return address == "localhost" or ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def prepare(folder: Path, given: Path, publish: str) -> None:
    """Write all secrets.

    Raises:
        SystemExit: the API would be open to the network with no key.
    """
    keys = given_keys(given / "api-keys")
    if not keys and not is_loopback(publish):
        raise SystemExit(
            f"PUBLISH_ADDRESS is {publish}, so others reach the API, and there is no API key.\n"
            "Make one (secrets/README.md tells how) or leave PUBLISH_ADDRESS at 127.0.0.1."
        )
    make_once(folder / "runner-token")
    make_once(folder / "grafana-password")
    password = make_once(folder / "postgres-password")
    # libpq's file of passwords: it is refused if anybody but its owner may read it.
    write(folder / "pgpass", f"postgres:5432:ih_grpo:ih_grpo:{password}\n", mode=0o600, owner=GROUP)
    metrics_key = make_once(folder / "metrics-key")
    own = f"sha256:{hashlib.sha256(metrics_key.encode()).hexdigest()} name=prometheus"
    write(folder / "api-keys", "".join(f"{key}\n" for key in [*keys, own]) if keys else "")
    print(f"secrets ready; API keys: {len(keys) or 'none, for this machine alone'}")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), os.environ.get("PUBLISH_ADDRESS", "127.0.0.1"))
