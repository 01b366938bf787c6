"""JSON schemas: compiled once, offline, with patterns that run in linear time."""

from __future__ import annotations

import json

import jsonschema_rs


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
    for error in validator.iter_errors(instance):
        path = "".join(f"[{json.dumps(part)}]" for part in error.instance_path)
        return f"{error.message} at {path}" if path else error.message
    return None
