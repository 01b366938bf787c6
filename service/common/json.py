"""JSON encoding of responses, events and stored values, and JSON schemas.

Schemas are compiled once, offline, and their patterns run in linear time.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

import jsonschema_rs
from starlette.responses import JSONResponse

Json = dict[str, object]

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def dumps(payload: object) -> bytes:
    """Return compact ASCII JSON. Escaping makes it safe for any sandbox output, including lone surrogates."""
    return _ENCODER.encode(payload).encode("ascii")


def json_time(unix_time: float) -> str:
    """Return a Unix time in the form of RFC 3339, in UTC and in whole seconds."""
    return datetime.fromtimestamp(unix_time, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class JsonResponse(JSONResponse):
    """A response encoded by `dumps`."""

    def render(self, content: Any) -> bytes:
        return dumps(content)


def compile_schema(schema: dict[str, object] | bool) -> jsonschema_rs.Validator:
    """Compile ``schema``, of draft 2020-12 unless it names another.

    Raises:
        ValueError: ``schema`` is not a valid JSON schema, or refers to another document.
    """
    try:
        return jsonschema_rs.validator_for(schema, offline=True)
    except jsonschema_rs.ReferencingError as error:
        raise ValueError(str(error)) from None
    except jsonschema_rs.ValidationError as error:
        raise ValueError(error.message) from None


def first_error(validator: jsonschema_rs.Validator, instance: object) -> str | None:
    """Return the first error in ``instance`` with its path; None if it is valid."""
    try:
        for error in validator.iter_errors(instance):
            path = "".join(f"[{json.dumps(part)}]" for part in error.instance_path)
            return f"{error.message} at {path}" if path else error.message
    except UnicodeEncodeError:
        return "a lone surrogate is not valid Unicode"
    return None
