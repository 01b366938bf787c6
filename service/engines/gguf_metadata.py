"""The metadata of a GGUF file: architecture, limits, vocabulary, chat template, sampling parameters.

The reader of the ``gguf`` package makes a numpy array of every string: 7 seconds for a vocabulary of 150,000
tokens. This one takes a fraction of a second and does not look at the tensors.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from service.engines.base import EngineError, Sampling

WeightType = Literal["f32", "f16", "bf16", "q8_0"]
"""Types of matrices that can be written."""

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types of the format, in the notation of the module ``struct``."""
_STRING: Final = 8
_ARRAY: Final = 9
_VERSIONS: Final = (2, 3)
_SAMPLING: Final = {"temperature": "temp", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
"""Fields of `Sampling`, and their names in the metadata after ``general.sampling.``."""


def read_metadata(path: Path) -> dict[str, Any]:
    """Return all key-value pairs of a GGUF file. Arrays are lists. Don't change the result: it is cached.

    Raises:
        EngineError: the file can't be read or is not a GGUF file of version 2 or 3.
    """
    try:
        status = path.stat()
        return _read(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise EngineError(f"{path} can't be read: {error.strerror}") from error
    except (struct.error, UnicodeDecodeError, ValueError, KeyError) as error:
        raise EngineError(f"{path} is not a complete GGUF file: copy or download it again") from error


def gguf_sampling(path: Path) -> Sampling:
    """Return the default sampling parameters of a GGUF file: its ``general.sampling`` values; for missing
    ones, temperature 1.0 and no filters.

    Raises:
        EngineError: the file can't be read.
    """
    metadata = read_metadata(path)
    known = {field: f"general.sampling.{key}" for field, key in _SAMPLING.items()}
    return replace(
        Sampling(), **{field: metadata[key] for field, key in known.items() if metadata.get(key) is not None}
    )


def sampling_metadata(sampling: Sampling) -> dict[str, float | int]:
    """Return the ``general.sampling`` values of a file with these defaults: those that are not neutral."""
    neutral = Sampling()
    return {
        f"general.sampling.{key}": getattr(sampling, field)
        for field, key in _SAMPLING.items()
        if getattr(sampling, field) != getattr(neutral, field)
    }


@lru_cache(maxsize=2)  # a server reads the file for its sampling parameters and for the engine
def _read(path: Path, size: int, modified: int) -> dict[str, Any]:  # noqa: ARG001  part of the cache's key
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("magic")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _MetadataCursor(data)
            if reader.number("I") not in _VERSIONS:
                raise ValueError("version")
            reader.number("Q")  # number of tensors
            return {reader.string(): reader.value(reader.number("I")) for _ in range(reader.number("Q"))}


class _MetadataCursor:
    """A position in the file, after the magic number."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        start = self._at + 8
        self._at = start + struct.unpack_from("<Q", self._data, self._at)[0]
        if self._at > len(self._data):
            raise ValueError("truncated")
        return self._data[start : self._at].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        item, count = self.number("I"), self.number("Q")
        if item in (_STRING, _ARRAY):
            return [self.value(item) for _ in range(count)]
        layout = f"<{count}{_SCALARS[item]}"
        values = list(struct.unpack_from(layout, self._data, self._at))
        self._at += struct.calcsize(layout)
        return values
