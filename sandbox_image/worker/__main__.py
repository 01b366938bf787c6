"""Start-up: fork the first namespace process, then supervise it until the container ends.

The only argument is a JSON object with the fields of ``Config``. Frames are read from stdin and written to
stdout.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys

from .namespace import become_namespace
from .protocol import Config

_PR_SET_DUMPABLE = 4


def main() -> None:
    config = Config(**json.loads(sys.argv[1]))
    # Move the channel away from descriptors 0 and 1, so that no later process inherits it by accident.
    channel_in, channel_out = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        for fd in (channel_in, channel_out, null):
            os.close(fd)
        ours.close()
        become_namespace(theirs, config)
    theirs.close()
    # Make this process's memory unreadable, even for processes of the same uid.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
    # Only the supervisor needs asyncio. Imported after the fork, it takes no memory in the namespace.
    from .supervisor import supervise

    supervise(channel_in, channel_out, ours, pid, config)


main()
