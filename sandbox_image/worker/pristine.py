"""Put a dict back as it was, without a look at its values where nothing has changed.

To look at a value is to write its reference count: in a fork that copies the page it lies in, and the modules
lie in a thousand pages.
"""

from __future__ import annotations

import ctypes
from typing import Any

_VERSION_OFFSET = 24
"""Of ``ma_version_tag`` (PEP 509) in a dict, CPython 3.11 and 3.12."""
_from_address = ctypes.c_uint64.from_address


def _version(of: dict[Any, Any]) -> int:
    return _from_address(id(of) + _VERSION_OFFSET).value


def _versions_work() -> bool:
    sample: dict[str, int] = {}
    seen = {_version(sample)}
    for value in range(3):
        sample["key"] = value
        seen.add(_version(sample))
    return len(seen) == 4


_has_versions = _versions_work()


class Pristine:
    """The content of ``target`` at this moment."""

    def __init__(self, target: dict[Any, Any]) -> None:
        self._target = target
        self._content = dict(target)
        self._seen = _version(target)

    def restore(self) -> None:
        """Put back what was replaced or removed; what was added stays."""
        if _has_versions and _version(self._target) == self._seen:
            return
        self._target.update(self._content)
        self._seen = _version(self._target)
