"""Mistakes in settings, in words that name the field."""

from __future__ import annotations

from difflib import get_close_matches

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, *models: type[BaseModel]) -> list[str]:
    """One line a mistake, led by the field's name. ``models``: whose fields a misspelt one may have meant."""
    known = [name for model in models for name in model.model_fields]
    lines = []
    for item in error.errors(include_url=False):
        field = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        given = "" if item["type"] in ("missing", "value_error") else f", got {item['input']!r}"
        if item["type"] == "missing":
            message = "is missing"
        if item["type"] == "extra_forbidden":
            meant = get_close_matches(str(item["loc"][-1]), known, n=1)
            message, given = "there is no such field" + "".join(f"; did you mean {m}?" for m in meant), ""
        lines.append(f"{field}: {message}{given}" if field else message)
    return lines
