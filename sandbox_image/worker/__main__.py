"""Start-up: fork the first namespace process, then supervise it for the container's whole life.

The one argument is a JSON object with the fields of ``Config``. Frames come in on stdin and go out on stdout.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys

from .config import Config
from .namespace import become_namespace

_PR_SET_DUMPABLE = 4


def main() -> None:
    config = Config(**json.loads(sys.argv[1]))
    # The channel moves away from 0 and 1, so that nothing started later can hold it by accident.
    channel_in, channel_out = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        for fd in (channel_in, channel_out, null):
            os.close(fd)
        ours.close()
        become_namespace(theirs, config)
    theirs.close()
    # Nobody may read this memory, not even a process of the same uid (where there is only one).
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
    # Only the supervisor needs asyncio; imported after the fork it costs the namespace nothing.
    from .supervisor import supervise

    supervise(channel_in, channel_out, ours, pid, config)


main()
