"""The worker's argument, and the control protocol between the supervisor and the namespace processes.

The supervisor sends a command as one packet with a ``HEADER`` (the command, a random token, the size of the
payload) and the payload in packets of ``PACKET_BYTES``. The namespace process answers with one packet: the
token and one byte. Any other packet is ignored, since code in the process can write to the socket as well.
Code that finds the token can answer too early. It gains nothing: on a reply the process is stopped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = struct.Struct("!c8sI")
PACKET_BYTES = 1 << 15
NO_TOKEN = bytes(8)
"""Token of the first reply of a process, which answers no command."""

RUN = b"R"
"""Run a block. Payload: JSON with ``name`` (of the script), ``code`` and ``alone`` (whether it may be one of
several). The first block of a script comes with the descriptors of its stdout and stderr."""
FINISH = b"F"
"""End the script: print the value of its last expression and wait for its threads. A payload asks for its
displays (open figures, a table as last value)."""
RENDER = b"D"
"""Fork a process that renders the displays to the descriptor that comes with the command. The payload is the
format of figures."""
RENDERING = b"r"
CHECKPOINT = b"C"
"""Fork a copy that answers on the descriptor that comes with the command."""
SEED = b"S"
"""Seed the random generators. The reply is ``STARTED``."""

STARTED, STARTED_SHARING = b"k", b"h"
"""A namespace process is ready. The second one holds open pipes or shared memory, which a checkpoint can't
restore."""
RAN = {(False, False): b"d", (False, True): b"u", (True, False): b"p", (True, True): b"q"}
"""Replies to a block that ran to its end, by whether it has forked and whether it left timers running."""
EXITED = b"e"
"""Reply to a block that left the script with exit code 0."""
NOT_SEPARABLE = b"n"
"""Reply to a block that must run together with the others. Nothing of it has run."""
FINISHED, FINISHED_WITH_TIMERS, FINISHED_WITH_DISPLAYS = b"f", b"u", b"v"

TOOL_CALL = b"T"
"""Packet of code that calls a tool. It comes with a connected socket on which the request follows."""
TOOL_REQUEST = "!III"
"""Head of a request: the sizes of the name and of the arguments, in bytes, and the number of calls that the
code makes immediately afterwards. Name and arguments follow."""
TOOL_REPLY = "!BI"
"""Head of a reply: its state, and the size of the value, in bytes. The value follows."""
CALL_FAILED, CALL_OK, CALL_DENIED = 0, 1, 2
"""States of a reply. The value is the result, or the message of the error."""
MAX_NAME_BYTES = 256
MAX_ARGUMENT_BYTES = 1 << 16
"""Largest arguments of a call, in bytes of JSON."""
MAX_OPEN_CALLS = 16
"""Highest number of calls of a script that are open at the same time."""

CHANNEL_LOST_SIGNAL = 64
"""Signal with which a process ends itself if code has closed its socket before the end of the script."""


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
    inputs: str = ""
    """Directory of the inputs, which code can only read; empty if there is none. It belongs to the supervisor
    and is part of no snapshot."""
    address_space_bytes: int = 0
    """RLIMIT_AS of code, if no cgroup limits its memory; 0 for no limit."""
    reusable: bool = False
    """Keep a copy of the initial process, so that ``reset`` can restore it."""
    processes: int = 0
    """Processes and threads of code, including a few that are reserved for checkpoints; 0 for no limit. They
    are counted by uid, which requires an owner that is root."""
