"""JSON as it goes over the wire."""

from __future__ import annotations

import json
from typing import Any, Final

from starlette.responses import JSONResponse

Json = dict[str, object]

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def dumps(payload: object) -> bytes:
    """Compact JSON, escaped to ASCII: no output of a sandbox, lone surrogates included, can break it."""
    return _ENCODER.encode(payload).encode("ascii")


class JsonResponse(JSONResponse):
    """A response of `dumps`."""

    def render(self, content: Any) -> bytes:
        return dumps(content)
