"""Prepare the secrets of the stack before anything else starts: ``init.py FOLDER GIVEN``.

Generated secrets are created once and kept. The operator's files in GIVEN (API keys, and the token and
certificate authorities of runners on other hosts) are copied at every start. Only the group of the services
can read the files. Uses only the standard library.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import sys
from pathlib import Path

GROUP = 10001
"""User and group ID of the services, see the Dockerfile."""


def make_once(path: Path) -> str:
    """Return the secret in ``path``. Creates it if it does not exist."""
    if not path.exists() or not path.read_text().strip():
        write(path, secrets.token_hex(32) + "\n")
    return path.read_text().strip()


def write(path: Path, text: str, *, mode: int = 0o440, owner: int = 0) -> None:
    """Write ``text`` to ``path`` atomically. Other users can never read it, not even during the write."""
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
    """Return the lines of the operator's key file, which may be missing; see ``ih-grpo keys create``."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def is_loopback(address: str) -> bool:
    """Return whether a port published on ``address`` is reachable from this machine only."""
    try:
        return address == "localhost" or ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def prepare(folder: Path, given: Path, publish: str) -> None:
    """Write all secrets.

    Raises:
        SystemExit: The API would be open to the network without a key.
    """
    keys = given_keys(given / "api-keys")
    if not keys and not is_loopback(publish):
        raise SystemExit(
            f"PUBLISH_ADDRESS is {publish}, which other machines can reach, but no API key is set.\n"
            "Create one (see secrets/README.md) or set PUBLISH_ADDRESS to 127.0.0.1."
        )
    if token := (given / "runner-token").read_text().strip() if (given / "runner-token").is_file() else "":
        write(folder / "runner-token", token + "\n")  # shared with runners on other hosts
    make_once(folder / "runner-token")
    if (given / "runner-ca.pem").is_file():
        write(folder / "runner-ca.pem", (given / "runner-ca.pem").read_text())
    make_once(folder / "grafana-password")
    password = make_once(folder / "postgres-password")
    # libpq's password file; libpq rejects it if anyone but the owner can read it.
    write(folder / "pgpass", f"postgres:5432:ih_grpo:ih_grpo:{password}\n", mode=0o600, owner=GROUP)
    metrics_key = make_once(folder / "metrics-key")
    own = f"sha256:{hashlib.sha256(metrics_key.encode()).hexdigest()} name=prometheus"
    write(folder / "api-keys", "".join(f"{key}\n" for key in [*keys, own]) if keys else "")
    print(f"secrets ready; API keys: {len(keys) or 'none, this machine only'}")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), os.environ.get("PUBLISH_ADDRESS", "127.0.0.1"))
