"""Python stubs of tools: for the sandbox, which builds functions from them, and as text for the model."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Collection, Sequence
from typing import Any, Final

from service.tools.base import ToolSpec

MAX_DOC_CHARS: Final = 1000
"""Longest description of a tool that the model reads. The rest is cut."""
_MAX_DEPTH: Final = 4
"""Depth to which nested types are written out."""
_MAX_VALUES: Final = 12
"""Longest enumeration that is written out."""
_SCALARS: Final = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
    "object": "dict",
    "array": "list",
}
_RESERVED: Final = frozenset({"gather", "ToolError", "ToolDeniedError"})


def identifier(name: str, taken: Collection[str] = ()) -> str:
    """Return a Python identifier for a tool called ``name`` that is not one of ``taken``."""
    base = re.sub(r"[^0-9a-zA-Z_]", "_", name) or "_"
    if base[0].isdigit() or base.startswith("__"):
        base = f"tool_{base.lstrip('_')}"
    if keyword.iskeyword(base) or base in _RESERVED:
        base += "_"
    result, number = base, 2
    while result in taken:
        result, number = f"{base}_{number}", number + 1
    return result


def stub(spec: ToolSpec) -> dict[str, Any]:
    """Return the stub of a tool in the form that the sandbox reads.

    Each of its ``parameters`` has a ``name``, ``annotation``, ``required``, ``default`` and ``omit_none``:
    the argument is left out if it is None. ``more`` says whether other arguments are accepted too.
    """
    schema = _resolved(spec.parameters, spec.parameters)
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    listed = schema.get("required")
    required = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    parameters = [
        _parameter(name, properties[name], spec.parameters, name in required) for name in properties
    ]
    parameters.sort(key=lambda parameter: not parameter["required"])  # stable: as Python wants them
    odd = any(not is_parameter(parameter["name"]) for parameter in parameters)
    additional = schema.get("additionalProperties", not properties)
    return {
        "name": spec.name,
        "doc": _doc(spec),
        "parameters": parameters,
        "more": odd or bool(additional),
        "returns": "str" if spec.output is None else annotation(spec.output, spec.output),
    }


def listing(specs: Sequence[ToolSpec]) -> str:
    """Return the section of the prompt that lists ``specs`` as Python functions."""
    functions = "\n\n".join(_text(stub(spec)) for spec in specs)
    names = ", ".join(spec.name for spec in specs[:3]) + (", ..." if len(specs) > 3 else "")
    return (
        f"In Python blocks you can call these functions, after `from tools import {names}`. "
        "A failed call raises ToolError. Results stay in variables: print only what you must read. "
        f"`gather({specs[0].name}.bind(...), ...)` makes several calls at the same time.\n\n{functions}"
    )


def _text(stub: dict[str, Any]) -> str:
    shown = []
    for parameter in stub["parameters"]:
        if is_parameter(parameter["name"]):
            default = "" if parameter["required"] else f" = {parameter['default']!r}"
            shown.append(f"{parameter['name']}: {parameter['annotation']}{default}")
    if stub["more"]:
        shown.append("**more")
    doc = stub["doc"].replace('"""', "'''").replace("\n", "\n    ")
    body = f'    """{doc}"""' if doc else "    ..."
    return f"def {stub['name']}({', '.join(shown)}) -> {stub['returns']}:\n{body}"


def is_parameter(name: str) -> bool:
    """Return whether ``name`` can be the name of a parameter."""
    return name.isidentifier() and not keyword.iskeyword(name) and name != "more"


def _parameter(name: str, schema: object, root: dict[str, Any], required: bool) -> dict[str, Any]:
    resolved = _resolved(schema, root)
    default = resolved.get("default")
    return {
        "name": name,
        "annotation": annotation(resolved, root),
        "required": required,
        "default": default if isinstance(default, str | int | float | bool | None) else None,
        # A function that shows "= None" may be called with None, although the schema has no null.
        "omit_none": not required and "None" not in annotation(resolved, root).split(" | "),
    }


def _doc(spec: ToolSpec) -> str:
    lines = [spec.description.strip()] if spec.description.strip() else []
    schema = _resolved(spec.parameters, spec.parameters)
    properties = schema.get("properties")
    for name, part in (properties if isinstance(properties, dict) else {}).items():
        resolved = _resolved(part, spec.parameters)
        note = resolved.get("description")
        if isinstance(note, str) and note.strip():
            lines.append(f"{name}: {' '.join(note.split())}")
        elif not is_parameter(name):
            lines.append(f"{json.dumps(name)}: {annotation(resolved, spec.parameters)}")
    text = "\n".join(lines)
    return text if len(text) <= MAX_DOC_CHARS else f"{text[:MAX_DOC_CHARS]}..."


def annotation(schema: object, root: dict[str, Any], depth: int = 0) -> str:
    """Return the Python type of ``schema``, a part of ``root``; ``object`` if there is no simple one."""
    resolved = _resolved(schema, root)
    if "const" in resolved:
        return f"Literal[{resolved['const']!r}]"
    if isinstance(values := resolved.get("enum"), list):
        simple = all(isinstance(value, str | int | bool | None) for value in values)
        return (
            f"Literal[{', '.join(map(repr, values))}]" if simple and len(values) <= _MAX_VALUES else "object"
        )
    for key in ("anyOf", "oneOf"):
        if isinstance(parts := resolved.get(key), list) and parts:
            return _union([annotation(part, root, depth + 1) for part in parts[:_MAX_VALUES]])
    kind = resolved.get("type")
    if isinstance(kind, list):
        return _union([_SCALARS.get(str(part), "object") for part in kind])
    if kind == "array" and "items" in resolved and depth < _MAX_DEPTH:
        return f"list[{annotation(resolved['items'], root, depth + 1)}]"
    if kind == "object" and depth < _MAX_DEPTH and isinstance(resolved.get("additionalProperties"), dict):
        return f"dict[str, {annotation(resolved['additionalProperties'], root, depth + 1)}]"
    return _SCALARS.get(str(kind), "object")


def _union(parts: list[str]) -> str:
    return "object" if "object" in parts else " | ".join(dict.fromkeys(parts))


def _resolved(schema: object, root: dict[str, Any]) -> dict[str, Any]:
    """Return ``schema`` with a local reference followed."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, dict):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return schema
        target: object = root
        for part in reference.split("/")[1:]:
            target = (
                target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
            )
        schema = target
    return {}
