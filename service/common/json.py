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


class SchemaError(ValueError):
    """A schema can't be used.

    Args:
        message: the first error, with its place in the schema.
        is_foreign: other validators may accept it, because it only uses another dialect: of regular
            expressions in ``pattern``, or the one that ``$schema`` names.
    """

    def __init__(self, message: str, *, is_foreign: bool = False) -> None:
        super().__init__(message)
        self.is_foreign = is_foreign


def compile_schema(schema: dict[str, object] | bool) -> jsonschema_rs.Validator:
    """Compile ``schema``, of draft 2020-12 unless it names another.

    Raises:
        SchemaError: ``schema`` is not a valid JSON schema, or refers to another document.
    """
    try:
        return jsonschema_rs.validator_for(schema, offline=True)
    except jsonschema_rs.ReferencingError as error:
        raise SchemaError(str(error)) from None
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(_located(error), is_foreign=_is_foreign(error)) from None
    except ValueError as error:  # nested too deeply
        raise SchemaError(str(error)) from None


def _is_foreign(error: jsonschema_rs.ValidationError) -> bool:
    match error.kind:
        case jsonschema_rs.ValidationErrorKind.Format("regex"):
            return True
        case jsonschema_rs.ValidationErrorKind.Referencing():
            return error.message.startswith("Unknown meta-schema")
    return False


def _located(error: jsonschema_rs.ValidationError) -> str:
    """Return the message of ``error`` with the path of the invalid value."""
    path = "".join(f"[{json.dumps(part)}]" for part in error.instance_path)
    return f"{error.message} at {path}" if path else error.message


def first_error(validator: jsonschema_rs.Validator, instance: object) -> str | None:
    """Return the first error in ``instance`` with its path; None if it is valid."""
    try:
        for error in validator.iter_errors(instance):
            return _located(error)
    except UnicodeEncodeError:
        return "a lone surrogate is not valid Unicode"
    return None
