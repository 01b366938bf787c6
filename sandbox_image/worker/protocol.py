"""The worker's argument, and the control protocol between the supervisor and the namespace processes.

The supervisor sends a command as one ``HEADER`` (the command, a random token, the size of the payload) and
the payload, on a Unix socket. The namespace process answers with the token and one byte. A reply with another
token is a forgery: code that runs in the process can write to the socket as well.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = struct.Struct("!c8sI")
NO_TOKEN = bytes(8)
"""Token of the first reply of a process, which answers no command."""

RUN = b"R"
"""Run a block. Payload: JSON with ``name`` (of the script) and ``code``. The first block of a script comes
with the descriptors of its stdout and stderr."""
FINISH = b"F"
"""End the script: print the value of its last expression and wait for its threads."""
CHECKPOINT = b"C"
"""Fork a copy that answers on the descriptor that comes with the command."""

STARTED = b"k"
RAN = {(False, False): b"d", (False, True): b"u", (True, False): b"p", (True, True): b"q"}
"""Replies to a block that ran to its end, by whether it has forked and whether it left timers running."""
EXITED = b"e"
"""Reply to a block that left the script with exit code 0."""
FINISHED, FINISHED_WITH_TIMERS = b"f", b"u"


@dataclass(frozen=True)
class Config:
    """Argument of the worker program, sent by the owner of the sandbox as a JSON object."""

    uid: int
    """Uid and gid of running code. ``uid + 1`` is the uid of idle namespaces, which code can't signal. 0 if
    the machine provides only one uid (bubblewrap without root): then all processes share it."""
    home: str
    """The work directory."""
    writable: list[str]
    """Every directory that code can write to. Their content is restored if a flush fails."""
    output_bytes: int
    """Bytes kept of each stream: half from its start, half from its end."""
    output_limit_bytes: int
    """A flush that writes more than this to one stream is killed."""
    file_bytes: int
    """Largest size of a file, in bytes."""
    open_files: int
    """Largest number of open descriptors of a process."""
    max_lifetime_s: float
    """The supervisor exits after this many seconds in any case."""
    address_space_bytes: int = 0
    """RLIMIT_AS of code, if no cgroup limits its memory; 0 for no limit."""
    processes: int = 0
    """RLIMIT_NPROC of code, if no cgroup limits its processes; 0 for no limit."""
