"""JSON encoding of responses, events and stored values."""

from __future__ import annotations

import json
from typing import Any, Final

from starlette.responses import JSONResponse

Json = dict[str, object]

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def dumps(payload: object) -> bytes:
    """Return compact ASCII JSON. Escaping makes it safe for any sandbox output, including lone surrogates."""
    return _ENCODER.encode(payload).encode("ascii")


class JsonResponse(JSONResponse):
    """A response encoded by `dumps`."""

    def render(self, content: Any) -> bytes:
        return dumps(content)
