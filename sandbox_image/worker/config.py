"""What the runner tells a container when it starts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    uid: int
    """Code runs under this uid and gid. ``uid + 1`` is that of namespaces at rest, which code can't signal.
    0 means that this machine gives only one uid (bubblewrap without root): then nothing is split."""
    home: str
    """The work directory."""
    writable: list[str]
    """Every directory that code can write to: these are put back when a flush fails."""
    output_bytes: int
    """Bytes kept of each stream: half from its head, half from its tail."""
    output_limit_bytes: int
    """A flush that writes more than this to one stream is killed."""
    file_bytes: int
    """Largest file, in bytes."""
    open_files: int
    max_lifetime_s: float
    """The supervisor leaves after this long, whatever happens."""
    address_space_bytes: int = 0
    """RLIMIT_AS for code, where no memory cgroup exists; 0 leaves it to the cgroup."""
    processes: int = 0
    """RLIMIT_NPROC for code, where no pids cgroup exists; 0 leaves it to the cgroup."""
