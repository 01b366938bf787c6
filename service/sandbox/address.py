"""Where the runner is found: ``unix:/path/to.sock``, ``host:port`` or ``ws://host:port``."""

from __future__ import annotations

import socket
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Address:
    """A Unix socket (``path``) or a TCP address (``host``, ``port``); port 0 means any free one."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``unix:PATH``, ``HOST:PORT`` or ``[IPV6]:PORT``, or ``ws://HOST:PORT``; raises ValueError."""
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix:").removeprefix("//"))
            if not path.is_absolute():
                raise ValueError(
                    f"{text!r}: the path of a Unix socket must be absolute, as in unix:/run/runner.sock"
                )
            return cls(path=path)
        host, _, port = text.removeprefix("ws://").removesuffix("/").rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or "/" in host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError(f"{text!r} is no address: write unix:/path/to.sock or host:port")
        return cls(host=host, port=int(port))

    @property
    def authority(self) -> str:
        """The host part of a URL; ``localhost`` for a Unix socket."""
        if self.path is not None:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path is not None else self.authority

    def listen(self, mode: int) -> socket.socket:
        """A listening socket. A Unix socket has the permissions ``mode`` from its first moment on.

        A socket file that nobody listens on (its owner was killed) is replaced.

        Raises:
            OSError: the address is in use or not allowed.
        """
        if self.path is None:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            return socket.create_server((self.host, self.port), family=family, backlog=512)
        _remove_if_dead(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self.path))
            # Nobody can connect before listen(), so the mode is in force in time.
            self.path.chmod(mode)
            listener.listen(512)
        except OSError:
            listener.close()
            raise
        return listener


def _remove_if_dead(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} exists and is no socket; give another path or remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise OSError(f"{path} is in use: another runner listens there")
