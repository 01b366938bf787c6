"""One process at a time in a directory."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LOCK: Final = ".lock"


class DirectoryError(Exception):
    """A directory can't be written to, or is in use; the message names it and the hint."""


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of ``directory``, which is made if it is not there.

    The lock ends with the process, however that ends.

    Raises:
        DirectoryError: another process holds it, or it can't be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("w")
    except OSError as error:
        raise DirectoryError(
            f"{directory} can't be written to ({error.strerror}): name another directory"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DirectoryError(
                f"another process is at work in {directory}: wait for it, or use another directory"
            ) from None
        except OSError:
            pass  # a file system without locks, as some shared ones: go on as one would without this
        yield
