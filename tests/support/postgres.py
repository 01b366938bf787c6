"""A temporary Postgres cluster on a loopback address, run by an unprivileged user."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def binaries() -> Path | None:
    """The directory of ``initdb`` and ``pg_ctl`` (Debian: ``apt-get install postgresql``), or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def cluster() -> Iterator[str]:
    """Yield the URL of a new database; the cluster is removed afterwards."""
    bin_dir = binaries()
    assert bin_dir is not None
    # Not below pytest's folder, which other users can't access.
    directory = Path(tempfile.mkdtemp(prefix="ih-grpo-postgres-"))
    if os.geteuid() == 0:  # Postgres refuses to run as root
        shutil.chown(directory, "postgres")
    try:
        with _running(bin_dir, directory) as url:
            yield url
    finally:
        shutil.rmtree(directory)


@contextmanager
def _running(bin_dir: Path, directory: Path) -> Iterator[str]:
    def run(program: str, *arguments: str) -> None:
        as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*as_user, str(bin_dir / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = str(directory / "data")
    run("initdb", "-D", data, "-U", "tests", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    run("pg_ctl", "-D", data, "-w", "-o", options, "-l", str(directory / "log"), "start")
    try:
        yield f"postgresql://tests@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
